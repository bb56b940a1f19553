# SPDX-License-Identifier: Apache-2.0
"""Input validation, output copies and inference mode for sessions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_seed
from aapt_fast.models.autocast import without_autocast
from aapt_fast.models.stream_model import ImageLike, StreamModel
from aapt_fast.streaming.pages import PagePool
from aapt_fast.worlds.world import NEEDS_IMAGE, FirstFrame


@contextmanager
def computing(model: StreamModel) -> Iterator[None]:
    """Run the `with` block without gradients, in the dtypes of the model whatever autocast the caller is in.

    The model's GPU is the current one inside. Raises RuntimeError in a child of the process that made the model.
    """
    model.require_own_process()
    current = torch.cuda.device(model.device) if model.device.type == "cuda" else nullcontext()
    with current, torch.inference_mode(), without_autocast(model.device):
        yield


def check_start(model: StreamModel, image: object, prompt: object) -> None:
    """Raise ValueError if the image or the prompt is None and the generator needs one."""
    generator = model.generator
    fits = image is not None or not generator.needs_image
    require(fits, "image", NEEDS_IMAGE, None)
    fits = prompt is not None or not generator.needs_prompt
    require(fits, "prompt", "a prompt: this generator always attends to text", None)


def separate(model: StreamModel, image: ImageLike | FirstFrame | None, image_control: object) -> tuple[Any, object]:
    """Split a `FirstFrame` into its picture and its control; `image_control`, where given, replaces the latter.

    A picture alone is returned as it is. The control is None for a model whose steps take no control of the image.
    """
    if not isinstance(image, FirstFrame):
        return image, image_control
    takes_one = model.control is not None and model.control.with_previous
    own = image.control if takes_one else None
    return image.image, own if image_control is None else image_control


def check_pool(pool: PagePool, model: StreamModel) -> None:
    """Raise ValueError unless pages of `pool` are for keys of `model`."""
    config = model.config
    expected = (config.layers, config.heads, config.head_dim, model.dtype, model.device)
    layers, _, _, heads, head_dim = pool.k.shape
    got = (layers, heads, head_dim, pool.k.dtype, pool.k.device)
    require(got == expected, "pool", f"layers, heads, head_dim, dtype, device {expected}", got)


def checked_seed(seed: int) -> int:
    """`seed` as an int; raises TypeError for no integer, ValueError beyond 64 bits."""
    require_seed(seed)
    return int(seed)


def ordinary(tensor: Tensor) -> Tensor:
    """A copy [...] outside of inference mode, which users may write to and use in training."""
    with torch.inference_mode(False):
        return tensor.clone()


def wait_for(tensor: Tensor) -> None:
    """Wait until `tensor` [...] has been computed."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
