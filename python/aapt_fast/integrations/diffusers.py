# SPDX-License-Identifier: Apache-2.0
"""`AutoencoderKLWan` of diffusers. This module is imported only when an object of diffusers is patched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from aapt_fast.integrations import shared_vae
from aapt_fast.integrations.sites import Site
from aapt_fast.integrations.swap import Original
from aapt_fast.integrations.vae_layers import PART, layer_sites


class FastWanVAE(Original):
    """`_decode` and `_encode` of `AutoencoderKLWan`: on our kernels where they run, else layer by layer.

    Layer by layer, the pieces of the video are joined once, not after every frame.
    """

    def _decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """Decode z [B, z, T, h, w] -> video [B, 3, 1 + 4 (T - 1), 8 h, 8 w] in -1..1, a `DecoderOutput` or a tuple."""
        height, width = z.shape[3:]
        ratio = self.spatial_compression_ratio
        too_large = height > self.tile_sample_min_height // ratio or width > self.tile_sample_min_width // ratio
        if self.use_tiling and too_large:
            return self.tiled_decode(z, return_dict=return_dict)
        self.clear_cache()
        video = shared_vae.decode(self, z)
        if video is None:
            video = self._decode_by_layers(z)
            self.clear_cache()
        return DecoderOutput(sample=video) if return_dict else (video,)

    def _encode(self, x: Tensor) -> Tensor:
        """Encode x [B, 3, T, H, W] -> mean and log-variance [B, 2 z, T', h, w]."""
        height, width = x.shape[3:]
        too_large = height > self.tile_sample_min_height or width > self.tile_sample_min_width
        if self.use_tiling and too_large:
            return super()._encode(x)
        moments = shared_vae.encode_picture(self, x)
        if moments is None:
            return super()._encode(x)
        self.clear_cache()
        return moments

    def _decode_by_layers(self, z: Tensor) -> Tensor:
        latents = self.post_quant_conv(z)
        pieces = []
        for number, frame in enumerate(latents.split(1, dim=2)):
            self._conv_idx = [0]
            piece = self.decoder(frame, feat_cache=self._feat_map, feat_idx=self._conv_idx, first_chunk=number == 0)
            pieces.append(piece)
        video = torch.cat(pieces, dim=2)
        if self.config.patch_size is not None:
            video = unpatchify(video, patch_size=self.config.patch_size)
        return video.clamp(-1.0, 1.0)


def vae_sites(vae: Any, where: str = "") -> Iterator[Site]:
    """Places in an `AutoencoderKLWan`: its layers, its decoding loop and, where our kernels run, its encoder."""
    yield from layer_sites(vae, where)
    obstacle = shared_vae.obstacle(vae)
    if obstacle is None:
        kernels = f"by {shared_vae.kernels_of(vae)}; layer by layer in tiles, under autocast and with gradients"
        yield Site(PART, where, vae, "_decode", FastWanVAE, f"the whole decoder {kernels}")
        yield Site(PART, where, vae, "_encode", FastWanVAE, f"one picture {kernels}; longer videos as ever")
        return
    runs = "the video is put together once, not again after every frame"
    on_gpu = next(vae.parameters()).is_cuda
    yield Site(PART, where, vae, "_decode", FastWanVAE, f"{runs}; layer by layer: {obstacle}" if on_gpu else runs)
