# SPDX-License-Identifier: Apache-2.0
"""The transformer of Wan 2.1 and 2.2 on this package's cache protocol.

Its blocks attend to the text by cross-attention, normalise with LayerNorm, have biases and RMSNorm of q and k across
all heads, and the network predicts the velocity noise - x0. It shares caches, positions and ops with `Generator`, whose
joint blocks have none of this, and no layers. Parameters have the names of the original checkpoints; `keys.py`
translates those of diffusers.

Shapes: B batch, F frames, N tokens per frame, d width, H heads, L text tokens, h w latent grid.
Source: Wan (arXiv 2503.20314) section 4.2; Self-Forcing (arXiv 2506.08009) for `causal`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.errors import require, require_shape
from aapt_fast.models.resting import visiting
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.layers import (
    CrossAttention,
    Head,
    ImageEmbedding,
    SelfAttention,
    WanContext,
    layer_norm,
    sinusoids,
)
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.ops import FrameRope
from aapt_fast.ops.cache import Cache, GrowingCache, KeysAndValues, WholeClipCache
from aapt_fast.ops.window import WindowRule

PATCH = 2
NATIVE_GRIDS = {8: (60, 104), 16: (44, 80)}
"""Pixels per latent cell -> latent height and width that Wan was trained at: 2.1 at 480 x 832, 2.2 at 704 x 1280."""
SHIFT1, SCALE1, GATE1, SHIFT2, SCALE2, GATE2 = range(6)


class WanBlock(nn.Module):
    """Self-attention through the cache, cross-attention to the prompt, feed-forward."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width, self.eps = config.width, config.eps
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(width, config.eps) if config.cross_norm else None
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_width), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_width, width)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(self, x: Tensor, modulation: Tensor, text: list[KeysAndValues], cache: Cache, layer: int) -> Tensor:
        """Tokens x [B, F, N, d] and modulation [B, F or 1, N or 1, 6, d] -> tokens [B, F, N, d].

        text: keys and values [B or 1, L, H, D] of each kind of context token.
        """
        m = (self.modulation + modulation).unbind(-2)
        normed = (layer_norm(x, self.eps) * (1 + m[SCALE1]) + m[SHIFT1]).to(x.dtype)
        x = (x + self.self_attn(normed, cache, layer) * m[GATE1]).to(x.dtype)
        normed = x if self.norm3 is None else layer_norm(x, self.eps, self.norm3).to(x.dtype)
        x = x + self.cross_attn(normed, text)
        normed = (layer_norm(x, self.eps) * (1 + m[SCALE2]) + m[SHIFT2]).to(x.dtype)
        return (x + self.ffn(normed) * m[GATE2]).to(x.dtype)


class WanTransformer(nn.Module):
    """Predicts velocities. `forward` takes a whole clip, `velocity` some frames and a cache with those before."""

    needs_image = False
    needs_prompt = True
    text_in_pages = False  # cross-attention has keys of its own
    autocasts = False
    control = None

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        width, text = config.width, config.text_width
        self.patch_embedding = nn.Conv3d(config.in_channels, width, (1, PATCH, PATCH), stride=(1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(
            nn.Linear(text, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.timestep_features, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(WanBlock(config) for _ in range(config.layers))
        self.head = Head(width, config.out_channels * PATCH**2, config.eps)
        self.img_emb = ImageEmbedding(config.image_width, width) if config.image_width else None

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        *,
        causal: bool | WindowRule = False,
    ) -> Tensor:
        """The velocity noise - x0 of a whole clip.

        Args:
            hidden_states: [B, in_channels, F, h, w], h and w even: the noised clip and other inputs of the model.
            timestep: 0..1000, [B], [B, F] per frame, or [B, F N] per token.
            encoder_hidden_states: [B, L, text_width], all of which is attended to: prompts that were padded with
                zeros in training have to be here as well (`prepare_prompt`).
            encoder_hidden_states_image: [B, Li, image_width] for a model with image tokens, else None.
            causal: False: frames attend to each other both ways. True: by blocks, as `config.window_rule` says,
                or as the given rule says.

        Returns:
            [B, out_channels, F, h, w] in the dtype of `hidden_states`.

        Raises:
            ValueError: another shape.
        """
        context = self.encode_context(encoder_hidden_states, encoder_hidden_states_image)
        height, width = hidden_states.shape[-2:]
        cache: Cache
        if causal is False:
            cache = WholeClipCache(self.rope(height, width), eps=self.config.eps)
        else:
            cache = self.new_cache(height, width, None if causal is True else causal)
        return self.velocity(hidden_states, timestep, context, cache)

    def velocity(self, hidden_states: Tensor, timestep: Tensor, context: WanContext, cache: Cache) -> Tensor:
        """The velocity of the frames after those in `cache`, as `forward`, under a context from `encode_context`.

        hidden_states [B, in_channels, F, h, w], timestep [B], [B, F] or [B, F N] -> [B, out_channels, F, h, w].
        The cache is left before its `advance`: the same frames may be evaluated again, at another level. Later frames
        see the keys and values of the last evaluation.
        """
        batch, frames, height, width = self._check(hidden_states, timestep)
        prompts = len(context.text[0][0])
        require(prompts in (1, batch), "encoder_hidden_states", f"{batch} rows or 1", prompts)
        rows = (height // PATCH) * (width // PATCH)
        weight = self.patch_embedding.weight
        patches = F.pixel_unshuffle(hidden_states.transpose(1, 2).flatten(0, 1).to(weight.dtype), PATCH)
        x = F.linear(patches.flatten(2).mT, weight.flatten(1), self.patch_embedding.bias)
        x = x.unflatten(0, (batch, frames))

        time = self._embed_time(timestep)  # [B, 1 or F or F N, d]
        projection = self.time_projection[1].weight.dtype
        per_token = time.shape[1] not in (1, frames)
        time = time.unflatten(1, (frames, rows)) if per_token else time[:, :, None]
        modulation = self.time_projection(time.to(projection)).unflatten(-1, (6, -1))
        modulation = modulation.to(torch.promote_types(x.dtype, torch.float32))
        for layer, block in enumerate(self.blocks):
            x = block(x, modulation, context.layer(layer), cache, layer)
        patches = self.head(x, time).view(batch, frames, height // PATCH, width // PATCH, PATCH, PATCH, -1)
        picture = patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, height, width)
        return picture.to(hidden_states.dtype)

    def encode_context(
        self, encoder_hidden_states: Tensor, encoder_hidden_states_image: Tensor | None = None
    ) -> WanContext:
        """Keys and values of a prompt for the cross-attention of every layer, the same for every frame and timestep.

        encoder_hidden_states [B, L, text_width]; encoder_hidden_states_image [B, Li, image_width] or None.
        Raises ValueError for another shape, or image tokens that the model has no use for.
        """
        config, dtype, device = self.config, self.weight.dtype, self.weight.device
        require_shape("encoder_hidden_states", encoder_hidden_states, "B", "L", config.text_width)
        text = visiting(self.text_embedding, device)(encoder_hidden_states.to(dtype))
        if encoder_hidden_states_image is None:
            return WanContext([block.cross_attn.text(text) for block in self.blocks])
        name = "encoder_hidden_states_image"
        require(self.img_emb is not None, name, "None: this model has no image tokens", "a tensor")
        assert self.img_emb is not None
        require_shape(name, encoder_hidden_states_image, len(text), "Li", config.image_width)
        image = visiting(self.img_emb, device)(encoder_hidden_states_image.to(dtype))
        attentions = [block.cross_attn for block in self.blocks]
        return WanContext([layer.text(text) for layer in attentions], [layer.image(image) for layer in attentions])

    def prepare_prompt(self, embeddings: Tensor) -> Tensor:
        """Prompt embeddings [B, L, text_width] -> [B, text_length, text_width], padded with zeros as in training.

        Raises ValueError if L is larger than `text_length`.
        """
        require_shape("embeddings", embeddings, "B", "L", self.config.text_width)
        missing = self.config.text_length - embeddings.shape[1]
        require(missing >= 0, "embeddings", f"at most {self.config.text_length} tokens", embeddings.shape[1])
        return F.pad(embeddings, (0, 0, 0, missing))

    def rope(self, height: int, width: int) -> FrameRope:
        """Positions for latents of height x width: integers, in every direction."""
        device = self.patch_embedding.weight.device
        return FrameRope((height // PATCH, width // PATCH), self.config.head_dim, device=device)

    def new_cache(self, height: int, width: int, rule: WindowRule | None = None) -> GrowingCache:
        """An empty differentiable cache for latents of height x width; `rule` defaults to `config.window_rule`."""
        config = self.config
        return GrowingCache(config.layers, rule or config.window_rule, self.rope(height, width), eps=config.eps)

    @property
    def weight(self) -> Tensor:
        """A parameter [...] that has the device and the dtype of the network."""
        return self.patch_embedding.weight

    @property
    def text_modules(self) -> list[nn.Module]:
        """Layers that only text and image tokens run through, in cross-attention too: a step does without them."""
        embeddings = [self.text_embedding] if self.img_emb is None else [self.text_embedding, self.img_emb]
        return [*embeddings, *(module for block in self.blocks for module in block.cross_attn.text_modules)]

    def fit_grid(self, grid: tuple[int, int] | None, spatial_factor: int) -> tuple[int, int]:
        """Latent height and width of sessions; None: of training, for VAEs of 8 or 16 pixels per latent cell.

        Raises ValueError for a grid that is no pair of positive multiples of the patch.
        """
        if grid is None:
            known = spatial_factor in NATIVE_GRIDS
            require(known, "grid", f"latent height and width, for {spatial_factor} pixels per cell", None)
            return NATIVE_GRIDS[spatial_factor]
        given = isinstance(grid, tuple | list) and len(grid) == 2 and all(isinstance(n, int) for n in grid)
        require(given, "grid", "two whole numbers: latent height and width", repr(grid))
        require(all(n > 0 and n % PATCH == 0 for n in grid), "grid", f"two positive multiples of {PATCH}", grid)
        return grid[0], grid[1]

    def tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of a frame of latent height and width `grid`."""
        return (grid[0] // PATCH) * (grid[1] // PATCH)

    def default_sampler(self) -> FewStepSampler:
        """Self-Forcing's sampler, with the frames that `config.window_rule` says."""
        return FewStepSampler()

    def _embed_time(self, timestep: Tensor) -> Tensor:
        """Timesteps [B] or [B, T] -> [B, 1 or T, d]."""
        weight = self.time_embedding[0].weight
        timestep = timestep[:, None] if timestep.dim() == 1 else timestep
        return self.time_embedding(sinusoids(timestep, self.config.timestep_features).to(weight.dtype))

    def _check(self, hidden_states: Tensor, timestep: Tensor) -> tuple[int, int, int, int]:
        require_shape("hidden_states", hidden_states, "B", self.config.in_channels, "F", "h", "w")
        batch, _, frames, height, width = hidden_states.shape
        for name, length in (("height", height), ("width", width)):
            fits = length > 0 and length % PATCH == 0
            require(fits, f"hidden_states {name}", f"a positive multiple of {PATCH}", length)
        tokens = frames * (height // PATCH) * (width // PATCH)
        fits = tuple(timestep.shape) in {(batch,), (batch, frames), (batch, tokens)}
        expected = f"shape [{batch}], [{batch}, {frames}] or [{batch}, {tokens}]"
        require(fits, "timestep", expected, list(timestep.shape))
        return batch, frames, height, width
