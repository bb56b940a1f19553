# SPDX-License-Identifier: Apache-2.0
"""Prompts in words for Wan models: the UMT5 encoder of transformers, from local files.

Nothing is downloaded. transformers is imported when an encoder is made, not before.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.errors import CheckpointError, require, require_type
from aapt_fast.models.files.placement import checked_placement
from aapt_fast.models.files.read import read_config
from aapt_fast.models.files.recognise import recognise
from aapt_fast.models.resting import Visitor

ENCODER, TOKENIZER = "text_encoder", "tokenizer"
LENGTH = 512
"""Most tokens of a prompt, the end mark included, in Wan's training."""


class TextEncoder:
    """Encoder of prompts: a call gives the embeddings [L, text_width] of a prompt, without padding.

        model = StreamModel.from_pretrained(path, vae=path, text_encoder=TextEncoder(path))

    Args:
        path: folder of a diffusers pipeline with `text_encoder` and `tokenizer`, or a folder with the files of both.
        tokenizer: folder of the tokenizer; None: in `path`.
        device: device of the embeddings, on which they are computed. The weights, 11 GB in bfloat16 for Wan's encoder,
            rest in host memory. For each prompt they are copied there layer by layer, so that a stream has the GPU's
            memory almost for itself, and words are looked up on the CPU.
        dtype: of the weights, or torch's name of it; None: as in the files.
        length: most tokens of a prompt; of a longer one the first are kept, and the end mark.

    Raises:
        ImportError: transformers is not installed.
        CheckpointError: a folder or a file is missing or damaged, or holds something else.
        ValueError: `length` is less than 2; torch cannot use the device; the dtype is no floating-point one.
        TypeError: an argument is of another type.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        length: int = LENGTH,
    ) -> None:
        device, dtype = checked_placement(path, device, dtype)
        require_type("length", length, int)
        require(length >= 2, "length", "at least 2 tokens", length)
        if find_spec("transformers") is None:
            raise ImportError("transformers: expected to be installed for prompts: pip install aapt_fast[text]")
        from transformers import AutoTokenizer, UMT5EncoderModel

        weights, words = _folders(Path(path), None if tokenizer is None else Path(tokenizer))
        self.length = length
        self._tokenizer = _loaded(
            words, "a tokenizer", lambda: AutoTokenizer.from_pretrained(words, local_files_only=True)
        )
        self._encoder = _loaded(weights, "a UMT5 encoder", lambda: _encoder(UMT5EncoderModel, weights, dtype))
        self._device, self._encoder = device, self._encoder.eval().requires_grad_(False)
        stack = self._encoder.encoder
        stack.block = nn.ModuleList(map(Visitor, stack.block))
        stack.final_layer_norm = Visitor(stack.final_layer_norm)
        rows, tokens = self._encoder.config.vocab_size, len(self._tokenizer)
        if tokens > rows:
            raise CheckpointError(f"{words}: expected at most {rows} tokens, as {weights} embeds, got {tokens}")

    @property
    def text_width(self) -> int:
        """Width of the embeddings."""
        return int(self._encoder.config.d_model)

    def __call__(self, prompt: str) -> Tensor:
        """Embed a prompt -> [L, text_width], L at most `length`. Raises TypeError if it is no str."""
        require_type("prompt", prompt, str)
        tokens = self._tokenizer(
            clean_prompt(prompt), truncation=True, max_length=self.length, add_special_tokens=True, return_tensors="pt"
        )
        with torch.no_grad():
            words = self._encoder.get_input_embeddings()(tokens.input_ids).to(self._device)
            mask = tokens.attention_mask.to(self._device)
            return self._encoder(inputs_embeds=words, attention_mask=mask).last_hidden_state[0]


def clean_prompt(prompt: str) -> str:
    """Clean a prompt as in Wan's training: mend broken characters, decode HTML entities, keep single spaces.

    Characters are mended by ftfy if it is installed, as in diffusers.
    """
    if find_spec("ftfy") is not None:
        import ftfy

        prompt = ftfy.fix_text(prompt)
    return " ".join(html.unescape(html.unescape(prompt)).split())


def _folders(path: Path, tokenizer: Path | None) -> tuple[Path, Path]:
    """Folder of the weights, and folder of the tokenizer."""
    weights = path / ENCODER if (path / ENCODER).is_dir() else path
    words = tokenizer or (path / TOKENIZER if (path / TOKENIZER).is_dir() else weights)
    if not (weights / "config.json").is_file():
        expected = f"a folder with {ENCODER} of a pipeline, or with a UMT5 encoder and its config.json"
        raise CheckpointError(f"{path}: expected {expected}, got {recognise(path)}")
    kind = (read_config(weights) or {}).get("model_type")
    if kind != "umt5":
        raise CheckpointError(f"{weights / 'config.json'}: model_type: expected umt5, got {kind}")
    if not any((words / name).is_file() for name in ("tokenizer.json", "spiece.model", "tokenizer_config.json")):
        raise CheckpointError(f"{words}: expected tokenizer.json or spiece.model, got neither; say where in tokenizer")
    return weights, words


def _encoder(kind: Any, folder: Path, dtype: torch.dtype | None) -> Any:
    """Load the encoder of a folder; a tensor that the files do not hold is an error."""
    encoder, report = kind.from_pretrained(
        folder,
        local_files_only=True,
        dtype="auto" if dtype is None else dtype,
        ignore_mismatched_sizes=True,  # refused below, with the name
        output_loading_info=True,
    )
    for key, found, expected in sorted(report["mismatched_keys"]):
        raise CheckpointError(f"{folder}: {key}: expected shape {list(expected)}, got {list(found)}")
    for key in sorted(report["missing_keys"]):
        raise CheckpointError(f"{folder}: expected key {key}, as UMT5 encoders have it, got none")
    return encoder


def _loaded(folder: Path, what: str, load: Callable[[], Any]) -> Any:
    """Result of `load`. Errors of transformers, of many kinds and lines, become one `CheckpointError` of one line."""
    try:
        return load()
    except CheckpointError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{folder}: expected {what}, got {type(error).__name__}: {reason}") from error
