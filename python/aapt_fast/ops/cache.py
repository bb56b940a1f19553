# SPDX-License-Identifier: Apache-2.0
"""The key-value cache as models see it, and the caches that training uses.

The frames that a step sees are those of its `WindowRule` (ops/window.py), and a prompt before them. Queries and keys
of a frame are rotated at the frame's own index; a sink frame whose position moves is rotated again for every step.
Text is not rotated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from aapt_fast.errors import require, require_shape
from aapt_fast.ops._checks import records_gradients
from aapt_fast.ops.kv_write import normalise_and_rotate
from aapt_fast.ops.window import WindowRule

KeysAndValues = tuple[Tensor, Tensor]
Rope = Callable[[int], tuple[Tensor, Tensor]]
"""Frame index -> cos and sin, float32 [N, D / 2] each; for example a `FrameRope`."""

_MOST_SCORES = 2**24  # that `_plain_attention` may keep for the backward pass of one call


class Cache(Protocol):
    """Protocol of a cache. A call of a model runs `attend` once per layer, then `advance` once."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> Tensor:
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

    def advance(self, frames: int) -> None:
        """End a call of `frames` frames: they become past frames."""


class GrowingCache:
    """The functional, differentiable cache: for training and for whole clips.

    No tensor is changed in place, so gradients flow through the cached keys and values. `attend` may be repeated for a
    layer before `advance`, for example at the next noise level of the same frames: the last call counts. A call of
    more frames than the rule's `frames` is cut into blocks, from its first frame; the last block may be shorter.
    Frames that no later step sees are dropped. To recompute a block in the backward pass (activation checkpointing),
    let it see the `moment` of its first pass.

    Args:
        layers: number of layers.
        rule: frames that a step sees.
        rope: gives (cos, sin), float32 [N, D / 2] each, for a frame index; for example a `FrameRope`.
        text: per layer keys and values [B or 1, L, Hkv, D], normalised; or None. May be replaced between calls.
        eps: of the RMSNorm.

    Raises:
        ValueError: layers < 1, or not one text entry per layer.
    """

    def __init__(
        self,
        layers: int,
        rule: WindowRule,
        rope: Rope,
        text: Sequence[KeysAndValues] | None = None,
        *,
        eps: float = 1e-6,
    ) -> None:
        require(layers >= 1, "layers", "at least 1", layers)
        require(text is None or len(text) == layers, "text", f"{layers} entries, one per layer", text and len(text))
        self.layers, self.rule, self.rope, self.text, self.eps = layers, rule, rope, text, eps
        self.next_frame = 1
        self._past: list[dict[int, KeysAndValues]] = [{} for _ in range(layers)]  # by frame, keys rotated
        self._new: list[dict[int, KeysAndValues]] = [{} for _ in range(layers)]  # likewise, of the present call
        self._unrotated: list[dict[int, Tensor]] = [{} for _ in range(layers)]  # keys of frames that move
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}  # cos and sin by position

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> Tensor:
        """As `Cache.attend`: q [B, F, N, H, D] -> the same shape. Raises ValueError for a wrong layer or shape."""
        require(0 <= layer < self.layers, "layer", f"0..{self.layers - 1}", layer)
        require_shape("q", q, "B", "F", "N", "H", "D")
        batch, frames, tokens, _, width = q.shape
        require_shape("k", k, batch, frames, tokens, "Hkv", width)
        require_shape("v", v, *k.shape)
        first = self.next_frame
        tables = [self._table(index, q.device) for index in range(first, first + frames)]
        cos, sin = (torch.cat(parts) for parts in zip(*tables, strict=True))
        rotated_q = normalise_and_rotate(q.flatten(1, 2), q_weight, cos, sin, self.eps).view(q.shape)
        rotated_k = normalise_and_rotate(k.flatten(1, 2), k_weight, cos, sin, self.eps).view(k.shape)
        pairs = zip(rotated_k.unbind(1), v.unbind(1), strict=True)
        self._new[layer] = dict(enumerate(pairs, start=first))
        for frame in range(first, min(first + frames - 1, self.rule.moved) + 1):
            self._unrotated[layer][frame] = normalise_and_rotate(k[:, frame - first], k_weight, None, None, self.eps)

        known = self._past[layer] | self._new[layer]
        text = [] if self.text is None else [_of_batch(self.text[layer], batch)]
        outputs, newest = [], first - 1
        for queries in rotated_q.split(self.rule.frames, 1):
            newest += queries.shape[1]
            seen = [self._placed(layer, known[frame], frame, at) for frame, at in self.rule.seen(newest)]
            outputs.append(attention(queries.flatten(1, 2), [*text, *seen]).view(queries.shape))
        return torch.cat(outputs, 1)

    def advance(self, frames: int) -> None:
        """See `Cache.advance`. Raises RuntimeError unless every layer has attended with this many frames."""
        for layer, new in enumerate(self._new):
            if len(new) != frames:
                raise RuntimeError(f"advance: expected {frames} frames in layer {layer}, attend has seen {len(new)}")
        self.next_frame += frames
        seen = {frame for frame, _ in self.rule.seen(self.next_frame)}  # by the smallest block that can come next
        for layer, new in enumerate(self._new):
            known = self._past[layer] | new
            self._past[layer] = {frame: pair for frame, pair in known.items() if frame in seen}
            self._new[layer] = {}
        self._tables = {}

    def moment(self, layer: int) -> GrowingCache:
        """A cache in which `layer` can attend once more to what it sees now, whatever happens to this one meanwhile.

        Tensors are shared, not copied.
        """
        other = GrowingCache(self.layers, self.rule, self.rope, self.text, eps=self.eps)
        other.next_frame = self.next_frame
        other._past[layer] = dict(self._past[layer])
        other._unrotated[layer] = dict(self._unrotated[layer])
        return other

    def kept(self, layer: int) -> tuple[KeysAndValues | None, dict[int, Tensor], dict[int, KeysAndValues]]:
        """Tensors that a layer keeps between two calls, [B, N, Hkv, D] each.

        Text; by frame, keys before rotation of frames that move; by frame, rotated keys and values.
        """
        text = None if self.text is None else self.text[layer]
        return text, dict(self._unrotated[layer]), dict(self._past[layer])

    def detach(self) -> GrowingCache:
        """A new cache with the same past, cut from its graph: the start of the next segment of a long rollout.

        The text is cut as well; set `text` anew if its keys and values are to receive gradients.
        """

        def cut(pair: KeysAndValues) -> KeysAndValues:
            return pair[0].detach(), pair[1].detach()

        text = None if self.text is None else [cut(pair) for pair in self.text]
        other = GrowingCache(self.layers, self.rule, self.rope, text, eps=self.eps)
        other.next_frame = self.next_frame
        other._past = [{frame: cut(pair) for frame, pair in past.items()} for past in self._past]
        other._unrotated = [{frame: keys.detach() for frame, keys in kept.items()} for kept in self._unrotated]
        return other

    def _placed(self, layer: int, pair: KeysAndValues, frame: int, position: int) -> KeysAndValues:
        """Keys and values of a frame, the keys rotated at `position`."""
        if position == frame:
            return pair
        keys = self._unrotated[layer][frame]
        return normalise_and_rotate(keys, None, *self._table(position, keys.device)), pair[1]

    def _table(self, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if index not in self._tables:
            cos, sin = self.rope(index)
            self._tables[index] = cos.to(device), sin.to(device)
        return self._tables[index]


class WholeClipCache:
    """No cache at all: the frames of the one call attend to each other in both directions.

    Args:
        rope: gives (cos, sin), float32 [N, D / 2] each, for a frame index.
        text: per layer keys and values [B or 1, L, Hkv, D], normalised, which every frame sees as well; or None.
        eps: of the RMSNorm.
    """

    def __init__(self, rope: Rope, text: Sequence[KeysAndValues] | None = None, *, eps: float = 1e-6) -> None:
        self.next_frame = 1
        self.text, self._rope, self._eps = text, rope, eps

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> Tensor:
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

    def moment(self, layer: int) -> WholeClipCache:
        """This cache, as `attend` changes nothing in it; see `GrowingCache.moment`."""
        return self

    def advance(self, frames: int) -> None:
        """See `Cache.advance`. Raises RuntimeError on a second call: there is nothing to continue from."""
        if self.next_frame != 1:
            raise RuntimeError("advance: expected one call per clip, got a second one")
        self.next_frame += frames


def _of_batch(text: KeysAndValues, batch: int) -> KeysAndValues:
    """Keys and values [B or 1, L, Hkv, D] of a prompt for `batch` rows."""
    keys, values = text
    return keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)


def attention(q: Tensor, parts: list[KeysAndValues]) -> Tensor:
    """q [B, N, H, D] over the concatenated keys and values [B, N_i, Hkv, D] of all parts."""
    keys, values = (torch.cat(tensors, 1).transpose(1, 2) for tensors in zip(*parts, strict=True))
    queries, grouped = q.transpose(1, 2), q.shape[2] != keys.shape[1]
    scores = queries.shape[0] * queries.shape[1] * queries.shape[2] * keys.shape[2]
    trained = records_gradients(q, keys, values)
    if trained and q.is_cpu and q.dtype == torch.bfloat16 and scores <= _MOST_SCORES and not grouped:
        return _plain_attention(queries, keys, values).transpose(1, 2)
    return scaled_dot_product_attention(queries, keys, values, enable_gqa=grouped).transpose(1, 2)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, H, N, D], k and v [B, H, L, D] in bfloat16, softmax in float32.

    For training on CPUs: with matrix instructions for bfloat16, forward and backward together take a third of the time
    of torch's fused attention, whose backward does not use them (36 queries, 252 keys).
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.float().softmax(-1).to(v.dtype) @ v
