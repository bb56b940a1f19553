# SPDX-License-Identifier: Apache-2.0
"""What a model knows about its key-value cache, and the cache that training uses.

Frames count from 1. The tokens of frame i attend to

    text | sink (frame 1) | window (the `window` frames before i, as far as they exist) | frame i itself

in both directions inside a frame, and to each of these once: while frame 1 is still in the window, it is the sink.
Queries and keys of a frame are rotated at the frame's own index. The sink's distance saturates: once frame 1 has
left the window, it is rotated as if it sat at i - (window + 1), directly before the window, so that an endless stream
never shows the model a distance that it has not seen in training. Text is not rotated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from aapt_fast.errors import require, require_shape
from aapt_fast.ops.kv_write import normalise_and_rotate

KeysAndValues = tuple[torch.Tensor, torch.Tensor]

_MOST_SCORES = 2**24  # that `_plain_attention` may keep for the backward pass of one call


class Cache(Protocol):
    """What models see. A call of a model runs `attend` once per layer, then `advance` once."""

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention of the next F frames in one layer.

        Args:
            layer: which layer, from 0.
            q: [B, F, N, H, D], before norm and rotation.
            k: [B, F, N, Hkv, D], likewise.
            v: [B, F, N, Hkv, D].
            q_weight: RMSNorm weight [D] (per head) or [H * D] (across heads), or None (no norm).
            k_weight: likewise.

        Returns:
            [B, F, N, H, D] in q.dtype.
        """
        ...

    def advance(self, frames: int) -> None:
        """End a call of `frames` frames: they become past frames."""
        ...


class FunctionalCache:
    """What functional caches share: the frames of the present call, checked, rotated and kept until `advance`.

    No tensor is ever changed in place. `rope` gives (cos, sin), float32 [N, D / 2] each, for a frame index. Raises
    ValueError for layers < 1.
    """

    def __init__(
        self, layers: int, rope: Callable[[int], tuple[torch.Tensor, torch.Tensor]], eps: float = 1e-6
    ) -> None:
        require(layers >= 1, "layers", "at least 1", layers)
        self.layers, self.rope, self.eps = layers, rope, eps
        self.next_frame = 1
        self._new: list[list[KeysAndValues]] = [[] for _ in range(layers)]  # of the present call, keys rotated
        self._tables: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # cos and sin by frame index

    def _rotate(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """Check the arguments of `Cache.attend`, keep rotated keys and values, return the rotated q [B, F, N, H, D]."""
        require(0 <= layer < self.layers, "layer", f"0..{self.layers - 1}", layer)
        require_shape("q", q, "B", "F", "N", "H", "D")
        batch, frames, tokens, _, width = q.shape
        require_shape("k", k, batch, frames, tokens, "Hkv", width)
        require_shape("v", v, *k.shape)
        tables = [self._table(index, q.device) for index in range(self.next_frame, self.next_frame + frames)]
        cos, sin = (torch.cat(parts) for parts in zip(*tables, strict=True))
        rotated_q = normalise_and_rotate(q.flatten(1, 2), q_weight, cos, sin, self.eps).view(q.shape)
        rotated_k = normalise_and_rotate(k.flatten(1, 2), k_weight, cos, sin, self.eps).view(k.shape)
        self._new[layer] = list(zip(rotated_k.unbind(1), v.unbind(1), strict=True))
        return rotated_q

    def _require_attended(self, frames: int) -> None:
        for layer, new in enumerate(self._new):
            if len(new) != frames:
                raise RuntimeError(f"advance: expected {frames} frames in layer {layer}, attend has seen {len(new)}")

    def _table(self, index: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if index not in self._tables:
            cos, sin = self.rope(index)
            self._tables[index] = cos.to(device), sin.to(device)
        return self._tables[index]


class GrowingCache(FunctionalCache):
    """The functional, differentiable cache: for training and for whole clips.

    No tensor is ever changed in place, so gradients flow through the cached keys and values, and `attend` may be
    repeated for a layer before `advance` (the last call counts). Frames that have left the window are dropped, except
    the sink. To recompute blocks in the backward pass (activation checkpointing), call `advance` after `backward`.

    Args:
        layers: number of layers.
        window: past frames kept, besides the sink.
        rope: gives (cos, sin), float32 [N, D / 2] each, for a frame index; for example a `FrameRope`.
        text: per layer keys and values [B or 1, L, Hkv, D], normalised; or None. May be replaced between calls.
        eps: of the RMSNorm.

    Raises:
        ValueError: layers < 1, window < 0, or not one text entry per layer.
    """

    def __init__(
        self,
        layers: int,
        window: int,
        rope: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
        text: Sequence[KeysAndValues] | None = None,
        *,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(layers, rope, eps)
        require(window >= 0, "window", "at least 0 frames", window)
        require(text is None or len(text) == layers, "text", f"{layers} entries, one per layer", text and len(text))
        self.window, self.text = window, text
        self._past: list[list[KeysAndValues]] = [[] for _ in range(layers)]  # window, keys rotated, oldest first
        self._sinks: list[KeysAndValues | None] = [None] * layers  # keys not rotated

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `Cache.attend`: q [B, F, N, H, D] -> the same shape. Raises ValueError for a wrong layer or shape."""
        rotated_q, first, batch = self._rotate(layer, q, k, v, q_weight, k_weight), self.next_frame, len(q)
        if first == 1:
            self._sinks[layer] = normalise_and_rotate(k[:, 0], k_weight, None, None, self.eps), v[:, 0]

        cached = self._past[layer] + self._new[layer]
        oldest = first - len(self._past[layer])
        outputs = []
        for index, queries in enumerate(rotated_q.unbind(1), start=first):
            window = cached[max(index - self.window, 1) - oldest : index - oldest + 1]
            outputs.append(attention(queries, [*self._always(layer, index, batch, q.device), *window]))
        return torch.stack(outputs, 1)

    def advance(self, frames: int) -> None:
        """See `Cache.advance`. Raises RuntimeError unless every layer has attended with this many frames."""
        self._require_attended(frames)
        self.next_frame += frames
        for layer, new in enumerate(self._new):
            kept = self._past[layer] + new
            self._past[layer] = kept[max(len(kept) - self.window, 0) :]
            self._new[layer] = []
        nearest_sink = self.next_frame - self.window - 1
        self._tables = {index: table for index, table in self._tables.items() if index >= nearest_sink}

    def kept(self, layer: int) -> tuple[KeysAndValues | None, KeysAndValues | None, list[KeysAndValues]]:
        """What a layer keeps between two calls, keys and values [B, N, Hkv, D]: text, sink (not rotated), window."""
        return None if self.text is None else self.text[layer], self._sinks[layer], list(self._past[layer])

    def detach(self) -> GrowingCache:
        """A new cache with the same past, cut from its graph: the start of the next segment of a long rollout.

        The text is cut as well; set `text` anew if its keys and values are to receive gradients.
        """

        def cut(pair: KeysAndValues) -> KeysAndValues:
            return pair[0].detach(), pair[1].detach()

        text = None if self.text is None else [cut(pair) for pair in self.text]
        other = GrowingCache(self.layers, self.window, self.rope, text, eps=self.eps)
        other.next_frame, other._tables = self.next_frame, dict(self._tables)
        other._past = [[cut(pair) for pair in past] for past in self._past]
        other._sinks = [None if sink is None else cut(sink) for sink in self._sinks]
        return other

    def _always(self, layer: int, index: int, batch: int, device: torch.device) -> list[KeysAndValues]:
        """Text, and the sink if it is not in the window of frame `index`."""
        parts = []
        if self.text is not None:
            parts.append(_of_batch(self.text[layer], batch))
        sink, position = self._sinks[layer], index - self.window - 1
        if sink is not None and position >= 1:
            keys = normalise_and_rotate(sink[0], None, *self._table(position, device))
            parts.append((keys, sink[1]))
        return parts


class WholeClipCache:
    """No cache at all: the frames of the one call attend to each other in both directions.

    Args:
        rope: gives (cos, sin), float32 [N, D / 2] each, for a frame index.
        text: per layer keys and values [B or 1, L, Hkv, D], normalised, which every frame sees as well; or None.
        eps: of the RMSNorm.
    """

    def __init__(
        self,
        rope: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
        text: Sequence[KeysAndValues] | None = None,
        *,
        eps: float = 1e-6,
    ) -> None:
        self.next_frame = 1
        self.text, self._rope, self._eps = text, rope, eps

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `Cache.attend`, q [B, F, N, H, D], but every frame sees all F frames.

        Raises ValueError for a layer without its text.
        """
        tables = [self._rope(index) for index in range(1, 1 + q.shape[1])]
        cos, sin = (torch.cat(parts).to(q.device) for parts in zip(*tables, strict=True))
        rotated_q = normalise_and_rotate(q.flatten(1, 2), q_weight, cos, sin, self._eps)
        rotated_k = normalise_and_rotate(k.flatten(1, 2), k_weight, cos, sin, self._eps)
        parts = [(rotated_k, v.flatten(1, 2))]
        if self.text is not None:
            require(layer < len(self.text), "text", f"an entry for layer {layer}", f"{len(self.text)} entries")
            parts.insert(0, _of_batch(self.text[layer], len(q)))
        return attention(rotated_q, parts).view(q.shape)

    def advance(self, frames: int) -> None:
        """See `Cache.advance`. Raises RuntimeError on a second call: there is nothing to continue from."""
        if self.next_frame != 1:
            raise RuntimeError("advance: expected one call per clip, got a second one")
        self.next_frame += frames


def _of_batch(text: KeysAndValues, batch: int) -> KeysAndValues:
    """Keys and values [B or 1, L, Hkv, D] of a prompt for `batch` rows."""
    keys, values = text
    return keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)


def attention(q: torch.Tensor, parts: list[KeysAndValues]) -> torch.Tensor:
    """q [B, N, H, D] over the concatenated keys and values [B, N_i, Hkv, D] of all parts."""
    keys, values = (torch.cat(tensors, 1).transpose(1, 2) for tensors in zip(*parts, strict=True))
    queries, grouped = q.transpose(1, 2), q.shape[2] != keys.shape[1]
    scores = queries.shape[0] * queries.shape[1] * queries.shape[2] * keys.shape[2]
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, keys, values))
    if trained and q.is_cpu and q.dtype == torch.bfloat16 and scores <= _MOST_SCORES and not grouped:
        return _plain_attention(queries, keys, values).transpose(1, 2)
    return scaled_dot_product_attention(queries, keys, values, enable_gqa=grouped).transpose(1, 2)


def _plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q [B, H, N, D], k and v [B, H, L, D] in bfloat16, softmax in float32.

    For training on CPUs: with matrix instructions for bfloat16, forward and backward together take a third of the time
    of torch's fused attention, whose backward does not use them (36 queries, 252 keys).
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.float().softmax(-1).to(v.dtype) @ v
