# SPDX-License-Identifier: Apache-2.0
"""A warning for a first picture that the model cannot draw: its codec loses more of it than of any in its gallery."""

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


def unlike_gallery(picture: np.ndarray, model: StreamModel, gallery: Sequence[FirstFrame]) -> str | None:
    """A sentence about a picture uint8 [H, W, 3] of the model's size if it is unlike its gallery, else None."""
    if not gallery:
        return None
    known = [codec_error(first.image, model) for first in gallery]
    error, least, most = codec_error(picture, model), min(known), max(known)
    if BELOW * least <= error <= ABOVE * most:
        return None
    return (
        f"the picture is unlike those that {model.name} was trained on (error of its codec: {error:.1f} of 255; "
        f"in its gallery {least:.1f} to {most:.1f}): expect a video that blurs and drifts"
    )


@torch.inference_mode()
def codec_error(picture: np.ndarray, model: StreamModel) -> float:
    """Root mean square difference in grey levels of a picture uint8 [H, W, 3] from what the model's VAE makes of it."""
    shown = model.decode(model.vae.stream(), model.encode_image(picture))[0].cpu().numpy()
    return float(np.sqrt(np.square(shown.astype(np.float64) - picture).mean()))
