# SPDX-License-Identifier: Apache-2.0
"""Streaming decoders of other packages with the weights of a `WanVAE` of this one.

A `Step` takes the next normalised latents [1, z, 1, h, w] of a stream of its own and gives video frames [1, 3, F, H, W]
in -1..1. Of vLLM-Omni and SGLang only the calls are tried, with stand-ins (`tests/bench/test_decoder.py`): neither has
run here. Their names are those of August 2026.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

from aapt_fast.models.vae.wan import WanVAE
from aapt_fast.models.vae.wan_keys import WanVAEKeys
from aapt_fast.profiling.decoder_steps import Step

VLLM_OMNI = "vllm_omni.diffusion.distributed.autoencoders.wan_vae_fastpath.install"
SGLANG = "sglang.multimodal_gen"


def diffusers_step(vae: WanVAE) -> Step:
    """Make a step of diffusers' `AutoencoderKLWan` as it is."""
    return _step_of_diffusers(_in_diffusers(vae), vae)


def vllm_omni_step(vae: WanVAE) -> Step:
    """Make a step of diffusers' `AutoencoderKLWan` after vLLM-Omni's "channels_last" fast path, its fastest level.

    Raises ImportError without the package, and RuntimeError if it leaves the module as it is.
    """
    install = import_module(VLLM_OMNI).install_wan_vae_fastpath
    stock = _in_diffusers(vae)
    report = install(stock, level="channels_last")
    if not report.installed:
        raise RuntimeError(f"vLLM-Omni's fast path is not installed: {report.reason}")
    return _step_of_diffusers(stock, vae)


def sglang_step(vae: WanVAE) -> Step:
    """Make a step of SGLang's own `AutoencoderKLWan` with its Triton kernels on, on one GPU.

    Raises ImportError without the package.
    """
    models, configs = f"{SGLANG}.runtime.models.vaes", import_module(f"{SGLANG}.configs.models.vaes.wanvae")
    sizes = asdict(vae.config)
    sizes["patch_size"] = None if vae.config.patch_size == 1 else vae.config.patch_size
    sizes["in_channels"] = sizes["out_channels"] = 3 * vae.config.patch_size**2
    arch = configs.WanVAEArchConfig(**sizes, scale_factor_spatial=vae.spatial_factor)
    config = configs.WanVAEConfig(arch_config=arch, use_parallel_encode=False, use_parallel_decode=False)
    theirs = _with_weights(import_module(f"{models}.wanvae").AutoencoderKLWan(config), vae)
    theirs = import_module(f"{models}.wan_vae_cuda_opt").maybe_optimize_wan_vae(theirs)
    gate = import_module(f"{models}.fast_path_gate").use_vae_fast_path
    theirs.reset_causal_decode_state()

    @torch.no_grad()
    def step(latents: Tensor) -> Tensor:
        with gate(theirs, True):
            return theirs.causal_decode(_denormalised(latents, vae))

    return step


OTHERS: dict[str, Callable[[WanVAE], Step]] = {"vLLM-Omni": vllm_omni_step, "SGLang": sglang_step}


def _in_diffusers(vae: WanVAE) -> AutoencoderKLWan:
    config, colours = vae.config, 3 * vae.config.patch_size**2
    fields = asdict(config)
    fields["temperal_downsample"] = list(fields.pop("temporal_downsample"))
    fields["dim_mult"] = list(config.dim_mult)
    fields["patch_size"] = None if config.patch_size == 1 else config.patch_size
    with torch.device("meta"):
        module = AutoencoderKLWan(**fields, in_channels=colours, out_channels=colours)
    return _with_weights(module, vae)


def _with_weights(module: Any, vae: WanVAE) -> Any:
    """`module`, whose parameters have diffusers' names, with copies of the weights of `vae` in their place."""
    keys = WanVAEKeys(len(vae.config.dim_mult), vae.config.num_res_blocks, vae.config.is_residual)
    state = {keys.to_diffusers(name): weight.contiguous() for name, weight in vae.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def _step_of_diffusers(stock: Any, vae: WanVAE) -> Step:
    stock.clear_cache()
    features, patch = stock._feat_map, vae.config.patch_size

    @torch.no_grad()
    def step(latents: Tensor) -> Tensor:
        x = stock.post_quant_conv(_denormalised(latents, vae))
        first = features[0] is None
        blocks = stock.decoder(x, feat_cache=features, feat_idx=[0], first_chunk=first)
        return unpatchify(blocks, patch).clamp(-1, 1)

    return step


def _denormalised(latents: Tensor, vae: WanVAE) -> Tensor:
    return (latents.float() * vae.latents_std + vae.latents_mean).to(latents.dtype)
