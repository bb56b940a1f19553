# SPDX-License-Identifier: Apache-2.0
"""The configuration of a Wan transformer, from its tensors and from a configuration file.

Nearly everything is in the shapes of the tensors, and a configuration must agree with them. The heads, eps and the
frames that a step sees come from the configuration only. Names are those of diffusers, of the original files or our
own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from aapt_fast.errors import CheckpointError, require
from aapt_fast.models.statements import Statement, agreed
from aapt_fast.models.wan.config import SELF_FORCING, WanConfig
from aapt_fast.ops.window import WindowRule

HEAD_DIM = 128  # of every published model

# our name -> the names that files use
NAMES = {
    "width": ("dim",),
    "heads": ("num_attention_heads", "num_heads", "heads"),
    "head_dim": ("attention_head_dim", "head_dim"),
    "layers": ("num_layers", "layers"),
    "ffn_width": ("ffn_dim", "ffn_width"),
    "in_channels": ("in_channels", "in_dim"),
    "out_channels": ("out_channels", "out_dim"),
    "text_width": ("text_dim", "text_width"),
    "text_length": ("text_len", "text_length"),
    "image_width": ("image_dim", "image_width"),
    "timestep_features": ("freq_dim", "timestep_features"),
    "cross_norm": ("cross_attn_norm", "cross_norm"),
    "eps": ("eps",),
    "patch": ("patch_size",),
    "norm": ("qk_norm",),
    "block_frames": ("num_frame_per_block",),
    "block_window": ("local_attn_size",),
    "block_sink": ("sink_size",),
    "blocks": ("blocks",),  # of files that 0.1.0 converted before it had window_rule
    "window_rule": ("window_rule",),
}
_NOTHING_SAID = {"image_width": (None,), "out_channels": (None,)}  # null in a file means 0, or as many as in_channels
_OTHER_FRAMES = (
    "a session sees other frames with sampler=FewStepSampler(window=WindowRule(frames=..., window=..., sink=...))"
)
_REMEDIES = dict.fromkeys(("block_frames", "block_window", "block_sink", "blocks", "window_rule"), _OTHER_FRAMES)
_FIXED = {"patch": (1, 2, 2), "norm": "rms_norm_across_heads"}  # of all Wan transformers


def wan_config(
    tensors: Mapping[str, Tensor],
    source: object,
    beside: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
    *,
    file_key: Callable[[str], str] = str,
) -> WanConfig:
    """The configuration of a checkpoint.

    Args:
        tensors: [...] by original names (`wan_keys`).
        source: the file, for messages.
        beside: the content of a configuration file; unknown names are passed over.
        given: the user's, with the same names; it may add to `beside`, not contradict it.
        file_key: from an original name to the one in the file, for messages.

    Raises CheckpointError for tensors that no Wan transformer has, for shapes that do not go together, and for a
    configuration that contradicts them; ValueError for an unknown name in `given`.
    """
    known = {name for names in NAMES.values() for name in names}
    for name in given or {}:
        require(name in known, "config", f"names out of {', '.join(sorted(known))}", name)
    facts = _facts(tensors, source, file_key)
    statements = [*_translated(beside or {}, "its config.json"), *_translated(given or {}, "config")]
    said = agreed(facts | _FIXED, statements, source, _REMEDIES)
    facts["heads"], facts["head_dim"] = _heads(facts.pop("width"), said, source)
    facts |= {name: said[name] for name in ("text_length", "eps") if name in said}
    try:
        return WanConfig(**facts, window_rule=_window_rule(said))
    except (TypeError, ValueError) as error:
        words = {name: word for name, word, _, _ in statements}
        field, colon, fault = str(error).partition(":")
        got = words.get(field, field) + colon + fault
        raise CheckpointError(f"{source}: expected the configuration of a Wan transformer, got {got}") from error


def _translated(config: Mapping[str, Any], place: str) -> Iterator[Statement]:
    """The statements of a configuration."""
    for name, aliases in NAMES.items():
        for alias in aliases:
            if alias in config and config[alias] not in _NOTHING_SAID.get(name, ()):
                value = tuple(config[alias]) if isinstance(config[alias], list) else config[alias]
                value = _FIXED["norm"] if name == "norm" and value is True else value
                yield name, alias, value, place


def _facts(tensors: Mapping[str, Tensor], source: object, file_key: Callable[[str], str]) -> dict[str, Any]:
    """The fields of a configuration that the shapes of the tensors show."""

    def shape(name: str, dimensions: int = 2) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"{source}: expected key {file_key(name)}, as Wan transformers have it, got none")
        found = tuple(tensors[name].shape)
        if len(found) != dimensions:
            key, got = file_key(name), list(found)
            raise CheckpointError(f"{source}: {key}: expected {dimensions} dimensions, got shape {got}")
        return found

    width, in_channels, *patch = shape("patch_embedding.weight", 5)
    if patch != [1, 2, 2]:
        raise CheckpointError(f"{source}: patch_embedding.weight: expected a patch of [1, 2, 2], got {patch}")
    outputs = shape("head.head.weight")[0]
    if outputs % 4:
        key = file_key("head.head.weight")
        raise CheckpointError(f"{source}: {key}: expected a multiple of 4 rows, got {outputs}")
    with_image = any(name.startswith("img_emb.") or ".cross_attn.k_img." in name for name in tensors)
    return {
        "width": width,
        "in_channels": in_channels,
        "out_channels": outputs // 4,
        "text_width": shape("text_embedding.0.weight")[1],
        "timestep_features": shape("time_embedding.0.weight")[1],
        "ffn_width": shape("blocks.0.ffn.0.weight")[0],
        "layers": _layers(tensors),
        "image_width": shape("img_emb.proj.1.weight")[1] if with_image else 0,
        "cross_norm": any(name.endswith(".norm3.weight") for name in tensors),
    }


def _layers(names: Iterable[str]) -> int:
    found = [re.match(r"blocks\.(\d+)\.", name) for name in names]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _heads(width: int, said: Mapping[str, Any], source: object) -> tuple[int, int]:
    """(heads, head_dim) of a configuration, else heads of 128."""
    head_dim = said.get("head_dim")
    if head_dim is None:
        head_dim = HEAD_DIM if "heads" not in said else _whole(width, said["heads"], "heads", source)
    heads = said.get("heads", _whole(width, head_dim, "head_dim", source))
    if heads * head_dim != width:
        expected = f"{width} = heads x head_dim, as its tensors say"
        raise CheckpointError(f"{source}: heads: expected {expected}, got {heads} x {head_dim}")
    return heads, head_dim


def _whole(width: int, divisor: Any, name: str, source: object) -> int:
    if not isinstance(divisor, int) or divisor < 1 or width % divisor:
        hint = "" if name == "heads" else '; give the number of heads, as config={"num_heads": 12}'
        raise CheckpointError(f"{source}: {name}: expected a divisor of its width {width}, got {divisor}{hint}")
    return width // divisor


def _window_rule(said: Mapping[str, Any]) -> WindowRule:
    """The frames that a step sees. Self-Forcing's words count sink and block in the window, and -1 means no limit."""
    rule = said.get("window_rule", {})
    fields: dict[str, Any] = vars(rule) if isinstance(rule, WindowRule) else dict(rule)
    theirs = dict(said.get("blocks", {}))
    theirs |= {word: said[f"block_{word}"] for word in ("frames", "window", "sink") if f"block_{word}" in said}
    if not theirs:
        return WindowRule(**{**vars(SELF_FORCING), **fields})
    frames, sink, seen = theirs.get("frames", SELF_FORCING.frames), theirs.get("sink", 0), theirs.get("window", 21)
    for word, least, value in (("num_frame_per_block", 1, frames), ("sink_size", 0, sink)):
        require(isinstance(value, int) and value >= least, word, f"a whole number from {least} on", value)
    if seen is None or seen == -1:
        return WindowRule(frames, None, sink)
    fits = isinstance(seen, int) and seen >= sink + frames
    expected = f"{sink + frames} or more frames (sink_size + num_frame_per_block), or -1 for all"
    require(fits, "local_attn_size", expected, seen)
    return WindowRule(frames, seen - sink - frames, sink)
