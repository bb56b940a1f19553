# SPDX-License-Identifier: Apache-2.0
"""The Wan VAE of this package with the very parameters of a diffusers `AutoencoderKLWan`, to run on our kernels.

`WanVAE` has the same layers under other names. One is built without memory for each `AutoencoderKLWan` that is decoded,
and every parameter of it is the tensor of its namesake: nothing is copied, and nothing is added to the module of
diffusers. Weights in the layout of the kernels are packed for the length of a call, 0.2 GB for Wan 2.1 in bfloat16. So
whatever is done to the parameters between two calls counts.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from torch import Tensor, nn

from aapt_fast.errors import CheckpointError
from aapt_fast.integrations.swap import is_swapped
from aapt_fast.integrations.vae_layers import layer_sites
from aapt_fast.models.vae.packed_weights import PackedWeights
from aapt_fast.models.vae.picture_memory import PictureMemory
from aapt_fast.models.vae.ring_cache import OPS, RingCache, kernels_run
from aapt_fast.models.vae.video_stream import ring_room
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.vae.wan_keys import WanVAEKeys
from aapt_fast.models.vae.wan_residual import channels_to_pixels
from aapt_fast.ops._checks import records_gradients
from aapt_fast.ops.kernels import running_kernel

CHANNEL_STEP = 16
"""Kernels take multiples of so many channels."""

BLOCKS = (wan.WanEncoder3d, wan.WanDecoder3d, wan.WanMidBlock, wan.WanUpBlock, wan.WanResidualUpBlock)
SHORTCUTS = (wan.WanResidualDownBlock, wan.AvgDown3D, wan.DupUp3D, wan.WanResample)
LAYERS = (wan.WanResidualBlock, wan.WanAttentionBlock, wan.WanCausalConv3d, wan.WanRMS_norm, wan.WanUpsample)
TORCHS = (nn.ModuleList, nn.Sequential, nn.Conv2d, nn.SiLU, nn.Dropout, nn.Identity, nn.ZeroPad2d)
KNOWN = {*BLOCKS, *SHORTCUTS, *LAYERS, *TORCHS}
"""Classes of the modules whose computation `WanVAE` repeats."""

_made: weakref.WeakKeyDictionary[nn.Module, WanVAE] = weakref.WeakKeyDictionary()


def decode(vae: Any, z: Tensor) -> Tensor | None:
    """Latents z [B, z, T, h, w] as `AutoencoderKLWan._decode` takes them -> video [B, 3, 1 + 4 (T - 1), H, W] in -1..1.

    None where diffusers' layers have to run: `obstacle`, gradients, autocast, torch.compile, no memory for the rings.
    """
    if _torch_only(vae, z) or obstacle(vae) is not None:
        return None
    ours = _ours(vae)
    assert isinstance(ours, WanVAE)
    if not _fits(ours, z):
        return None
    memory, pieces = RingCache(PackedWeights()), []
    for frame in z.split(1, dim=2):
        blocks = memory.output(ours.run_layers(frame, memory))
        pieces.append(channels_to_pixels(blocks, ours.config.patch_size).clamp(-1, 1))
    return torch.cat(pieces, dim=2)


def encode_picture(vae: Any, picture: Tensor) -> Tensor | None:
    """A picture [B, 3, 1, H, W] as `AutoencoderKLWan._encode` takes it -> mean and log-variance [B, 2 z, 1, h, w].

    None for a longer video, and where diffusers' layers have to run, as in `decode`.
    """
    if picture.dim() != 5 or picture.shape[2] != 1 or _torch_only(vae, picture) or obstacle(vae) is not None:
        return None
    ours = _ours(vae)
    assert isinstance(ours, WanVAE)
    return ours.encode_chunk(picture, PictureMemory())


def obstacle(vae: Any) -> str | None:
    """The reason why kernels cannot compute what `vae` does, as it is now, or None."""
    weights = list(vae.parameters())
    kinds = {(weight.device, weight.dtype) for weight in weights}
    if len(kinds) != 1:
        return f"its weights have {len(kinds)} kinds of dtype and device"
    device, dtype = kinds.pop()
    if not kernels_run(device, dtype):
        return f"no kernels of {' and '.join(OPS)} are on for {dtype}"
    return _other_computation(vae) or _other_sizes(vae)


def kernels_of(vae: Any) -> str:
    """The names of the kernels that run, or of the ops where torch runs them."""
    device = next(vae.parameters()).device
    return " and ".join(running_kernel(op, device) or op for op in OPS)


def _torch_only(vae: Any, x: Tensor) -> bool:
    """True if a call with x [B, C, T, H, W] needs torch's operators: gradients, autocast, a compiler, dtype."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return True
    weight = next(vae.parameters())
    same = x.dtype == weight.dtype and x.device == weight.device
    return not same or records_gradients(x, *vae.parameters())


def _other_computation(vae: Any) -> str | None:
    """What `vae` does that `WanVAE` does not do, or None."""
    if vae.config.attn_scales:
        return "attention outside of the middle"
    if vae.config.dropout and vae.training:
        return "dropout"
    for name, module in vae.named_modules():
        if module is vae:
            continue
        kind: Any = type(module)
        if (kind.swapped_from if is_swapped(module) else kind) not in KNOWN:
            return f"{name} is a {kind.__name__}"
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"{name} has hooks"
    sites = ((site.where, site.reason) for site in layer_sites(vae))
    return next((f"{where}: {reason}" for where, reason in sites if reason is not None), None)


def _other_sizes(vae: Any) -> str | None:
    """What of the sizes of `vae` the kernels do not take, or None."""
    ours = _ours(vae)
    if isinstance(ours, str):
        return ours
    widths = {*ours.config.decoder_widths, ours.config.z_dim}
    uneven = sorted(width for width in widths if width % CHANNEL_STEP)
    return f"widths {uneven} are no multiples of {CHANNEL_STEP}" if uneven else None


def _fits(vae: WanVAE, z: Tensor) -> bool:
    """True if there is room for the rings of latents z [B, z, T, h, w], and for the packed weights."""
    needed, left = ring_room(vae, z.shape[1], (z.shape[0], *z.shape[3:]))
    return left is None or needed <= left


def _ours(vae: Any) -> WanVAE | str:
    """The `WanVAE` with the parameters of `vae`, the same one as long as these are the same tensors.

    A reason in words where there is none.
    """
    theirs = dict(vae.named_parameters())
    config = vae.config
    keys = WanVAEKeys(len(config.dim_mult), config.num_res_blocks, config.is_residual)
    try:
        ours = _made.get(vae) or _on_meta(config)
        names = {name: keys.to_diffusers(name) for name, _ in ours.named_parameters()}
    except (ValueError, CheckpointError) as error:
        return str(error)
    if set(names.values()) != theirs.keys():
        return "it has other layers than the published models"
    for name, place in list(ours.named_parameters()):
        parameter = theirs[names[name]]
        if parameter is place:
            continue
        if parameter.shape != place.shape:
            return f"{names[name]} has shape {list(parameter.shape)}"
        layer, _, attribute = name.rpartition(".")
        ours.get_submodule(layer)._parameters[attribute] = parameter
    _made[vae] = ours
    return ours


def _on_meta(config: Any) -> WanVAE:
    """A `WanVAE` of diffusers' `config`, whose weights are nowhere. The statistics of latents are not used."""
    ours = WanVAEConfig(
        base_dim=config.base_dim,
        z_dim=config.z_dim,
        dim_mult=tuple(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temporal_downsample=tuple(config.temperal_downsample),
        latents_mean=(0.0,) * config.z_dim,
        latents_std=(1.0,) * config.z_dim,
        decoder_base_dim=config.decoder_base_dim,
        is_residual=config.is_residual,
        patch_size=config.patch_size or 1,
    )
    with torch.device("meta"):
        return WanVAE(ours).eval()
