# SPDX-License-Identifier: Apache-2.0
"""`AutoencoderKLWan` of diffusers. This module is imported only when an object of diffusers is patched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from aapt_fast.integrations.sites import Site
from aapt_fast.integrations.swap import Original
from aapt_fast.integrations.vae_layers import PART, layer_sites


class FastDecodeLoop(Original):
    """`_decode` of `AutoencoderKLWan` that joins the pieces of the video once, not after every frame."""

    def _decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """Decode z [B, z, T, h, w] -> video [B, 3, 1 + 4 (T - 1), 8 h, 8 w] in -1..1, a `DecoderOutput` or a tuple."""
        height, width = z.shape[3:]
        ratio = self.spatial_compression_ratio
        too_large = height > self.tile_sample_min_height // ratio or width > self.tile_sample_min_width // ratio
        if self.use_tiling and too_large:
            return self.tiled_decode(z, return_dict=return_dict)
        self.clear_cache()
        latents = self.post_quant_conv(z)
        pieces = []
        for number, frame in enumerate(latents.split(1, dim=2)):
            self._conv_idx = [0]
            piece = self.decoder(frame, feat_cache=self._feat_map, feat_idx=self._conv_idx, first_chunk=number == 0)
            pieces.append(piece)
        video = torch.cat(pieces, dim=2)
        if self.config.patch_size is not None:
            video = unpatchify(video, patch_size=self.config.patch_size)
        video = video.clamp(-1.0, 1.0)
        self.clear_cache()
        return DecoderOutput(sample=video) if return_dict else (video,)


def vae_sites(vae: Any, where: str = "") -> Iterator[Site]:
    """Places in an `AutoencoderKLWan`: its layers and its decoding loop."""
    yield from layer_sites(vae, where)
    runs = "the video is put together once, not again after every frame"
    yield Site(PART, where, vae, "_decode", FastDecodeLoop, runs)
