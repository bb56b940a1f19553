# SPDX-License-Identifier: Apache-2.0
"""Is a first picture one of the model's gallery, or unlike them all, so that its codec loses more of it?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aapt_fast.models.stream_model import StreamModel
from aapt_fast.worlds.world import FirstFrame

ABOVE, BELOW = 1.3, 0.5
"""Factors by which an error may lie outside of those of the gallery. The bundled codec's errors there are 3.6 to 5.8 of
255 grey levels; other renderings of its world have 3.1 to 6.2, photos 9 and more, noise 72, a single colour less than
1.2."""

PLAIN = 0.93
"""Share of neighbouring pixels of like colour above which a picture is called plain. It is 0.71 to 0.86 in the bundled
galleries and for other persons of their world, 0.97 for a square on white, 1 for a single colour."""
LIKE = 2
"""Grey levels up to which two neighbouring pixels are of like colour."""

NO_DETAIL = "the picture has hardly any detail, so no person is to be seen in it: expect a video that shows none either"

COPY = 10.0
"""Root mean square difference, of 255 grey levels, below which a picture is a copy. That of the bundled galleries'
pictures as JPEG files is at most 7.5 in quality 75, that of two different ones 35 and more."""


def number_in_gallery(picture: np.ndarray, gallery: Sequence[FirstFrame]) -> int | None:
    """The number of the first frame whose picture uint8 [H, W, 3] this is, or of which it is a JPEG file, else None."""
    for number, first in enumerate(gallery):
        known = np.asarray(first.image)
        if known.shape == picture.shape and _difference(known, picture) < COPY:
            return number
    return None


def gallery_errors(model: StreamModel, gallery: Sequence[FirstFrame]) -> list[float]:
    """The `codec_error` of every picture of a model's gallery."""
    return [codec_error(first.image, model) for first in gallery]


def unlike_gallery(picture: np.ndarray, model: StreamModel, known: Sequence[float]) -> str | None:
    """A sentence about a picture uint8 [H, W, 3] of the model's size if it is unlike its gallery, else None.

    `known` are the `gallery_errors`; without any nothing can be said.
    """
    if not known:
        return None
    if plainness(picture) > PLAIN:
        return NO_DETAIL
    error, least, most = codec_error(picture, model), min(known), max(known)
    if error < BELOW * least:
        return NO_DETAIL
    if error <= ABOVE * most:
        return None
    return (
        f"the picture is unlike those that {model.name} was trained on (error of its codec: {error:.1f} of 255; "
        f"in its gallery {least:.1f} to {most:.1f}): expect a video that blurs and drifts"
    )


def plainness(picture: np.ndarray) -> float:
    """Share of the neighbours, across and down, in a picture uint8 [H, W, 3] that are of like colour."""
    steps = [np.abs(np.diff(picture.astype(np.int64), axis=axis)).max(axis=-1) for axis in (0, 1)]
    return float(np.mean([(step <= LIKE).mean() for step in steps]))


@torch.inference_mode()
def codec_error(picture: np.ndarray, model: StreamModel) -> float:
    """Root mean square difference in grey levels of a picture uint8 [H, W, 3] from what the model's VAE makes of it."""
    shown = model.decode(model.vae.stream(), model.encode_image(picture))[0].cpu().numpy()
    return _difference(shown, picture)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference in grey levels of two pictures uint8 [H, W, 3]."""
    return float(np.sqrt(np.square(a.astype(np.float64) - b).mean()))
