# SPDX-License-Identifier: Apache-2.0
"""The generator: a block-causal MMDiT that turns noise, the recycled frame and controls into the next frame.

One code for training and streaming: the blocks hand raw q, k, v to a cache (`aapt_fast.ops.cache`), which knows
the frames that each may see. Shapes: B batch, F frames, N tokens per frame, d width, H heads, h w latent grid.
Source: AAPT (arXiv 2506.09350) section 2 and appendix B; the block follows MMDiT with a shared timestep MLP plus
learned per-layer vectors ("AdaSingle").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.errors import require, require_shape
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.sampling import EulerSampler
from aapt_fast.models.resting import visiting
from aapt_fast.ops import FrameRope, channel_concat, clean_frame, gate_residual_norm, normalise_and_rotate
from aapt_fast.ops.cache import Cache, GrowingCache, WholeClipCache

TIMESTEP_FEATURES = 256
SHIFT1, SCALE1, GATE1, SHIFT2, SCALE2, GATE2 = range(6)

TextKV = list[tuple[Tensor, Tensor]]
"""Normalised keys and values [B, L, H, D] of the prompt, per layer."""


class TimestepModulation(nn.Module):
    """Timesteps t [B] in 0..1 -> shared shift, scale and gate vectors [B, 6, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIMESTEP_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.out = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, t: Tensor) -> Tensor:
        """t [B] -> [B, 6, d]."""
        half = TIMESTEP_FEATURES // 2
        frequencies = torch.exp(-math.log(1e4) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = 1000.0 * t.float()[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.out.weight.dtype)
        return self.out(F.silu(self.mlp(features))).unflatten(-1, (6, -1))


class Stream(nn.Module):
    """The weights one stream (video or text) has in one block: QKV, output, MLP, head norms, modulation."""

    def __init__(self, config: GeneratorConfig, keys_only: bool = False) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_ratio * config.width
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))
        self.modulation = nn.Parameter(torch.zeros(6, width))
        with torch.no_grad():
            self.modulation[[GATE1, GATE2]] = 1.0
        if not keys_only:
            self.out = nn.Linear(width, width)
            self.up = nn.Linear(width, hidden)
            self.down = nn.Linear(hidden, width)
            nn.init.normal_(self.out.weight, std=0.02)
            nn.init.normal_(self.down.weight, std=0.01)

    def modulate(self, shared: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
        """This stream's six vectors, each [B, 1, d], from the shared ones [B, 6, d]."""
        return (shared + self.modulation).to(dtype)[:, :, None].unbind(1)

    def project(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [..., d] -> raw q, k, v [..., H, D]."""
        q, k, v = self.qkv(normed).unflatten(-1, (3, -1, len(self.q_norm))).unbind(-3)
        return q, k, v

    def mlp(self, normed: Tensor) -> Tensor:
        """Tokens [..., d] -> [..., d]."""
        return self.down(F.gelu(self.up(normed), approximate="tanh"))


class Block(nn.Module):
    """One MMDiT block: the video stream attends through the cache; the text stream, if any, only to itself."""

    def __init__(self, config: GeneratorConfig, last: bool) -> None:
        super().__init__()
        self.video = Stream(config)
        self.text = Stream(config, keys_only=last) if config.text_width else None

    def forward(
        self, x: Tensor, update: Tensor | None, gate: Tensor | None, modulation: Tensor, cache: Cache, layer: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Video tokens x [B, F, N, d] with the previous block's pending gated `update`; returns the same triple.

        Leaving the last addition to the next norm lets one kernel do gate, residual, norm and modulation.
        """
        stream, shape = self.video, x.shape
        m = stream.modulate(modulation, x.dtype)
        x, normed = gate_residual_norm(x.flatten(1, 2), _flat(update), gate, m[SCALE1], m[SHIFT1])
        q, k, v = stream.project(normed.view(shape))
        attended = cache.attend(layer, q, k, v, stream.q_norm, stream.k_norm).flatten(1, 2).flatten(-2)
        x, normed = gate_residual_norm(x, stream.out(attended), m[GATE1], m[SCALE2], m[SHIFT2])
        return x.view(shape), stream.mlp(normed).view(shape), m[GATE2]

    def encode_text(self, x: Tensor, modulation: Tensor, last: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Text tokens x [B, L, d] -> the next layer's tokens and this layer's (keys, values) [B, L, H, D]."""
        assert self.text is not None
        stream = visiting(self.text, x.device)
        m = stream.modulate(modulation, x.dtype)
        _, normed = gate_residual_norm(x, None, None, m[SCALE1], m[SHIFT1])
        q, k, v = stream.project(normed)
        q = normalise_and_rotate(q, stream.q_norm, None, None)
        k = normalise_and_rotate(k, stream.k_norm, None, None)
        if last:
            return x, (k, v)
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        update = stream.out(attended.transpose(1, 2).flatten(-2))
        x, normed = gate_residual_norm(x, update, m[GATE1], m[SCALE2], m[SHIFT2])
        return x + m[GATE2] * stream.mlp(normed), (k, v)


class ConvHead(nn.Module):
    """Refines the tokens' picture at latent resolution with convolutions that also see the inputs."""

    def __init__(self, inputs: int, width: int, blocks: int, outputs: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.conv_out = nn.Conv2d(width, outputs, 3, padding=1)
        for conv in [*self.second, self.conv_out]:
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, picture: Tensor, inputs: Tensor) -> Tensor:
        """The tokens' picture [B, w, h, w] and the network's inputs [B, inputs, h, w] -> [B, outputs, h, w]."""
        x = (picture + self.conv_in(inputs)).contiguous(memory_format=torch.channels_last)
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(F.silu(first(F.silu(x))))
        # few channels out: oneDNN's bf16 backward would be 50 times slower than fp32
        with torch.autocast(x.device.type, enabled=False):
            return self.conv_out(F.silu(x).to(self.conv_out.weight.dtype))


class Generator(nn.Module):
    """Predicts clean frames. See `forward`.

    `new_cache` makes the cache of a clip, or `whole_clip_cache` if the model is not autoregressive.
    """

    needs_image = True  # the recycled frame of the first step
    needs_prompt = False
    text_in_pages = True
    autocasts = True

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config, self.control = config, config.control
        width, channels, patch = config.width, config.latent_channels, config.patch
        control = config.control.step_channels if config.control else 0
        self.control_stem: nn.Module | None = None
        if config.control_width:
            require(control > 0, "control_width", "0 without a control", config.control_width)
            self.control_stem = nn.Sequential(
                nn.Conv2d(control, 2 * config.control_width, 1),
                nn.SiLU(),
                nn.Conv2d(2 * config.control_width, config.control_width, 3, padding=1),
            )
            control = config.control_width
        inputs = (2 if config.autoregressive else 1) * channels + control
        self.patch_embed = nn.Linear(inputs * patch**2, width)
        self.timestep = TimestepModulation(width)
        self.text_in = nn.Linear(config.text_width, width) if config.text_width else None
        self.blocks = nn.ModuleList(Block(config, last=i == config.layers - 1) for i in range(config.layers))
        self.modulation_out = nn.Parameter(torch.zeros(2, width))
        self.unpatch = nn.Linear(width, (config.head_width or channels) * patch**2)
        self.head: ConvHead | None = None
        if config.head_width:
            self.head = ConvHead(inputs, config.head_width, config.head_blocks, channels)
        else:
            nn.init.zeros_(self.unpatch.weight)
            nn.init.zeros_(self.unpatch.bias)
        if config.prediction == "frame":
            # shares of the noised and, if there is one, of the recycled frame
            self.skip = nn.Parameter(torch.tensor([0.0, 1.0] if config.autoregressive else [0.0]))

    def forward(
        self, noised: Tensor, recycled: Tensor | None, control: Tensor | None, t: Tensor, cache: Cache
    ) -> Tensor:
        """Predict the clean frames x0 of F consecutive frames and extend `cache` by them.

        noised [B, C, F, h, w]: x_t = (1 - t) x0 + t eps; recycled [B, C, F, h, w]: the frame before each, None if the
        model is bidirectional; control [B, step_channels, F, h, w] or None; t [B] in 0..1. Returns x0 [B, C, F, h, w]
        in float32. Without autocast the whole network computes in the dtype of its weights.
        At t = 1 this is the paper's one-evaluation generator, eps - v(eps). Raises ValueError for other shapes.
        """
        inputs = self._inputs(noised, recycled, control, t)
        modulation = self.timestep(t)
        x, update, gate = self._embed(inputs, len(t)), None, None
        for layer, block in enumerate(self.blocks):
            x, update, gate = block(x, update, gate, modulation, cache, layer)
        cache.advance(x.shape[1])
        shift, scale = (self.modulation_out + modulation[:, :2]).to(x.dtype)[:, :, None].unbind(1)
        _, normed = gate_residual_norm(x.flatten(1, 2), _flat(update), gate, scale, shift)
        tokens = self.unpatch(normed)
        if self.config.prediction == "velocity" and self.head is None:  # the tokens are the velocity
            return clean_frame(tokens, noised.float(), t.float(), self.config.patch)
        output = self._picture(tokens, inputs).float().unflatten(0, x.shape[:2]).transpose(1, 2)
        if self.config.prediction == "velocity":
            return noised.float() - t.float().view(-1, 1, 1, 1, 1) * output
        output = output + self.skip[0] * noised.float()
        return output if recycled is None else output + self.skip[1] * recycled.float()

    def hidden_states(
        self,
        noised: Tensor,
        recycled: Tensor | None,
        control: Tensor | None,
        t: Tensor,
        cache: Cache,
        depths: Sequence[int],
    ) -> list[Tensor]:
        """The token stream [B, F, N, d] after so many blocks, for each of the ascending `depths` (1 = the first block).

        The other arguments are those of `forward`. Raises ValueError for depths that do not ascend or do not exist.
        """
        known = range(1, len(self.blocks) + 1)
        fits = bool(depths) and list(depths) == [number for number in known if number in depths]
        require(fits, "depths", f"ascending numbers of blocks in 1..{len(self.blocks)}", tuple(depths))
        inputs = self._inputs(noised, recycled, control, t)
        modulation = self.timestep(t)
        x, update, gate = self._embed(inputs, len(t)), None, None
        states = []
        for layer, block in enumerate(self.blocks[: depths[-1]]):
            x, update, gate = block(x, update, gate, modulation, cache, layer)
            if layer + 1 in depths:
                states.append(x + gate[:, None] * update)
        return states

    def _inputs(self, noised: Tensor, recycled: Tensor | None, control: Tensor | None, t: Tensor) -> list[Tensor]:
        """Noised frames, those before them and features of the control, where there are any: [B F, channels, h, w]."""
        self._check(noised, recycled, control, t)
        dtype = self.patch_embed.weight.dtype
        inputs = [x.transpose(1, 2).flatten(0, 1) for x in (noised, recycled, control) if x is not None]
        if not torch.is_autocast_enabled(noised.device.type):  # which casts by itself
            inputs = [x.to(dtype) for x in inputs]
        if self.control_stem is not None:
            inputs[-1] = self.control_stem(inputs[-1].contiguous(memory_format=torch.channels_last))
        return inputs

    def _embed(self, inputs: list[Tensor], batch: int) -> Tensor:
        """Tokens [B, F, N, d] of the inputs of B rows."""
        weight, bias = self.patch_embed.weight, self.patch_embed.bias
        if not self.config.autoregressive:
            tokens = F.linear(F.pixel_unshuffle(inputs[0], self.config.patch).flatten(2).mT, weight, bias)
        else:
            noised, recycled, *rest = inputs
            features = rest[0] if rest else None
            tokens = channel_concat(noised, recycled, features, weight, bias, self.config.patch)
        return tokens.unflatten(0, (batch, -1))

    def _picture(self, tokens: Tensor, inputs: list[Tensor]) -> Tensor:
        """The last linear layer's tokens [B, F N, C p^2] -> the network's output [B F, C, h, w]."""
        frames, _, height, width = inputs[0].shape
        grid = (height // self.config.patch, width // self.config.patch)
        patches = tokens.view(frames, *grid, -1).permute(0, 3, 1, 2)
        picture = F.pixel_shuffle(patches, self.config.patch)
        if self.head is None:
            return picture
        return self.head(picture, torch.cat([source.to(picture.dtype) for source in inputs], dim=1))

    def encode_text(self, text: Tensor, t: Tensor) -> TextKV:
        """Prompt embeddings [B, L, text_width] -> per-layer keys and values; once per prompt and timestep t [B].

        Raises ValueError if the model has no text stream.
        """
        require(self.text_in is not None, "prompt", "none: this model has no text stream", "a prompt")
        assert self.text_in is not None
        require_shape("text", text, "B", "L", self.config.text_width)
        x, modulation, keys_values = visiting(self.text_in, self.weight.device)(text), self.timestep(t), []
        for layer, block in enumerate(self.blocks):
            x, kv = block.encode_text(x, modulation, last=layer == self.config.layers - 1)
            keys_values.append(kv)
        return keys_values

    def rope(self, height: int, width: int) -> FrameRope:
        """Positions for latents of height x width, stretched onto the native grid."""
        config = self.config
        native = (config.grid[0] // config.patch, config.grid[1] // config.patch)
        return FrameRope(
            grid=(height // config.patch, width // config.patch),
            head_dim=config.head_dim,
            theta=config.rope_theta,
            spatial_extent=native,
            temporal_interval=config.temporal_interval,
            device=self.patch_embed.weight.device,
        )

    def new_cache(
        self, height: int | None = None, width: int | None = None, text: TextKV | None = None
    ) -> GrowingCache:
        """An empty differentiable cache for latents of height x width (default: the native grid).

        Raises ValueError if the model is not autoregressive.
        """
        expected = "an autoregressive generator; others take a whole_clip_cache"
        require(self.config.autoregressive, "model", expected, "a bidirectional one")
        rope = self.rope(height or self.config.grid[0], width or self.config.grid[1])
        return GrowingCache(self.config.layers, self.config.window_rule, rope, text=text)

    def whole_clip_cache(
        self, height: int | None = None, width: int | None = None, text: TextKV | None = None
    ) -> WholeClipCache:
        """For one call with a whole clip of height x width, whose frames then attend to each other both ways."""
        return WholeClipCache(self.rope(height or self.config.grid[0], width or self.config.grid[1]), text=text)

    @property
    def weight(self) -> Tensor:
        """A parameter [...] that has the device and the dtype of the network."""
        return self.patch_embed.weight

    @property
    def text_modules(self) -> list[nn.Module]:
        """The text stream, layer by layer: a step does without it. Empty if there is none."""
        return [] if self.text_in is None else [self.text_in, *(block.text for block in self.blocks)]

    def fit_grid(self, grid: tuple[int, int] | None, spatial_factor: int) -> tuple[int, int]:
        """The native grid. Raises ValueError for another `grid`: sessions run at the native size."""
        native = self.config.grid
        fits = grid is None or (isinstance(grid, tuple | list) and tuple(grid) == native)
        require(fits, "grid", f"None or {native}, the native grid of the generator", grid)
        return native

    def tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of a frame of latent height and width `grid`."""
        return (grid[0] // self.config.patch) * (grid[1] // self.config.patch)

    def prepare_prompt(self, embeddings: Tensor) -> Tensor:
        """Prompt embeddings [1, L, text_width], as they are."""
        return embeddings

    def default_sampler(self) -> EulerSampler:
        """One evaluation per step."""
        return EulerSampler()

    def _check(self, noised: Tensor, recycled: Tensor | None, control: Tensor | None, t: Tensor) -> None:
        config = self.config
        require_shape("noised", noised, "B", config.latent_channels, "F", "h", "w")
        if config.autoregressive:
            require(recycled is not None, "recycled", "the frame before each", None)
            assert recycled is not None
            require_shape("recycled", recycled, *noised.shape)
        else:
            require(recycled is None, "recycled", "None: this model is bidirectional", "a tensor")
        for name, length in (("height", noised.shape[3]), ("width", noised.shape[4])):
            require(length % config.patch == 0, f"noised {name}", f"a multiple of {config.patch}", length)
        require_shape("t", t, noised.shape[0])
        if config.control is None:
            require(control is None, "control", "None: this model has no control", "a tensor")
        else:
            require(control is not None, "control", f"{config.control.step_channels} channels", None)
            require_shape("control", control, noised.shape[0], config.control.step_channels, *noised.shape[2:])


def _flat(update: Tensor | None) -> Tensor | None:
    """[B, F, N, d] -> [B, F N, d]."""
    return None if update is None else update.flatten(1, 2)
