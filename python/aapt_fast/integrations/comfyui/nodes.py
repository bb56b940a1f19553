# SPDX-License-Identifier: Apache-2.0
"""The nodes: each a class as ComfyUI reads it, with its inputs, outputs and the name of the method that runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_integer, require_shape, require_type
from aapt_fast.integrations.comfyui.host import Progress, chosen_device
from aapt_fast.integrations.explain import explain
from aapt_fast.integrations.patch import patch, unpatch
from aapt_fast.integrations.pipeline import AAPTPipeline
from aapt_fast.models.files.bundled import list_models
from aapt_fast.models.files.placement import fast_dtype
from aapt_fast.worlds import list_motions
from aapt_fast.worlds.world import FPS

MODEL = "AAPT_MODEL"
"""Type of the wire between the nodes: an `AAPTPipeline`."""
AUTO = "auto"
LONGEST = 24 * 600  # video frames, ten minutes
LARGEST_SEED = 2**53 - 1  # beyond it, browsers round

Inputs = dict[str, dict[str, tuple[Any, ...]]]


class LoadModel:
    """A model of aapt_fast: a bundled one, or one of your own from a file."""

    CATEGORY = "aapt_fast"
    DESCRIPTION = "Loads a bundled model, or one that aapt_fast has trained or saved."
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        models = list_models()
        told = {"default": "mini-person", "tooltip": "\n".join(f"{name}: {what}" for name, what in models.items())}
        path = "a file or folder of your own, used in place of the model above; empty for that one"
        return {
            "required": {
                "model": (list(models), told),
                "device": ([AUTO, "cpu", "cuda"], {"tooltip": "auto: where ComfyUI computes"}),
                "dtype": ([AUTO, "float32", "bfloat16"], {"tooltip": "auto: bfloat16 where the device is fast in it"}),
            },
            "optional": {"path": ("STRING", {"default": "", "tooltip": path})},
        }

    def load(self, model: str, device: str = AUTO, dtype: str = AUTO, path: str = "") -> tuple[AAPTPipeline]:
        """Load the model. Raises as `StreamModel.from_pretrained`."""
        place = chosen_device() if device == AUTO else torch.device(device)
        kind = fast_dtype(place) if dtype == AUTO else dtype
        return (AAPTPipeline.from_pretrained(path.strip() or model, device=place, torch_dtype=kind),)


class Stream:
    """A video of a model, four frames per step, by a script of motions."""

    CATEGORY = "aapt_fast"
    DESCRIPTION = "Makes a video: a first picture, and a script of motions that the person in it follows."
    RETURN_TYPES = ("IMAGE", "FLOAT")
    RETURN_NAMES = ("images", "fps")
    FUNCTION = "stream"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        motions = f"motions and their video frames, or medley. Motions: {', '.join(list_motions())}"
        gallery = "number of the first picture in the gallery of the model, where no image is connected"
        image = "the first picture, of any size: it is cropped and scaled to the model's"
        seed = {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True}
        return {
            "required": {
                "model": (MODEL,),
                "motion": ("STRING", {"default": "walk:48,wave:48", "tooltip": motions}),
                "frames": ("INT", {"default": 96, "min": 1, "max": LONGEST, "tooltip": "video frames, 24 per second"}),
                "seed": ("INT", seed),
                "gallery": ("INT", {"default": 0, "min": 0, "max": 999, "tooltip": gallery}),
            },
            "optional": {"image": ("IMAGE", {"tooltip": image})},
        }

    def stream(
        self,
        model: AAPTPipeline,
        motion: str,
        frames: int,
        seed: int,
        gallery: int = 0,
        image: Tensor | None = None,
    ) -> tuple[Tensor, float]:
        """Make float32 images [frames, H, W, 3] in 0..1 on the CPU, as ComfyUI has them, and their number per second.

        Args:
            model: of `LoadModel`.
            motion, frames, seed: as in a call of `AAPTPipeline`.
            gallery: number of the first picture where there is no `image`.
            image: float [1, H, W, 3] in 0..1.

        Raises:
            TypeError, ValueError: a bad argument.
        """
        require_type("model", model, AAPTPipeline)
        require_integer("frames", frames)
        if image is None:
            count = len(model.gallery)
            require_integer("gallery", gallery)
            expected = f"0 to {count - 1}" if count else "an image: this model has no gallery"
            require(0 <= gallery < count, "gallery", expected, gallery)
        entries = model.model.control.entries if model.model.control else 1
        bar = Progress(-(-frames // entries))
        made = model(
            model.gallery[gallery] if image is None else _picture(image),
            motion,
            num_frames=frames,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            callback_on_step_end=lambda _, step, __, made: bar.update(step + 1, made["frames"][-1]),
        )
        return made.frames[0].permute(0, 2, 3, 1).contiguous().cpu(), FPS


class PatchVAE:
    """ComfyUI's Wan VAE with faster layers, changed in place."""

    CATEGORY = "aapt_fast"
    DESCRIPTION = "Makes a Wan VAE faster, in place; the report says which layers were replaced."
    RETURN_TYPES = ("VAE", "STRING")
    RETURN_NAMES = ("vae", "report")
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        enabled = "false gives the VAE its own layers again: ComfyUI keeps a loaded VAE, and with it the change"
        return {
            "required": {"vae": ("VAE",), "enabled": ("BOOLEAN", {"default": True, "tooltip": enabled})},
        }

    def patch(self, vae: Any, enabled: bool = True) -> tuple[Any, str]:
        """Patch the VAE, or bring its own layers back; returns it, and the report of `explain`.

        Raises TypeError unless it is a Wan VAE.
        """
        model = getattr(vae, "first_stage_model", vae)
        try:
            (patch if enabled else unpatch)(model)
        except TypeError as error:
            raise TypeError(f"vae: expected the VAE of Wan 2.1 or 2.2, got one of {type(model).__name__}") from error
        return vae, str(explain(model))


def _picture(image: Tensor) -> Tensor:
    """An image of ComfyUI, float [1, H, W, 3] in 0..1 -> uint8 [H, W, 3]."""
    require_shape("image", image, "1", "H", "W", 3)
    require(len(image) == 1, "image", "one picture, [1, H, W, 3]", f"{len(image)}; ImageFromBatch takes one of them")
    low, high = (float(value) for value in image.aminmax())
    require(low >= 0 and high <= 1, "image", "values in 0..1", f"{low:g} to {high:g}")
    return (image[0] * 255).round().byte()
