# SPDX-License-Identifier: Apache-2.0
"""Sessions in files: the whole state, to go on from, or what a run was made of, to see it again.

    state     everything that later steps read: pages, decoder, newest frame. As large as the session's memory.
    replay    the first latent frame, its control, the prompt, the seed, and the control of every step.

Both are safetensors: tensors and JSON, no pickle. They fit the model that made them only, which a fingerprint of its
weights tells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aapt_fast.atomic import replacing
from aapt_fast.errors import CheckpointError, require, require_seed, warn_caller
from aapt_fast.models.files.read import open_safetensors
from aapt_fast.models.files.write import write_safetensors
from aapt_fast.models.sampling import Sampler
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.video_stream import DecoderState
from aapt_fast.streaming.cache_row import RowState
from aapt_fast.streaming.controls import entry_shape
from aapt_fast.streaming.past_steps import Made
from aapt_fast.streaming.run import Run, Start

VERSION = 2
STATE, REPLAY = "state of a session", "replay of a session"
SAMPLES = 16  # numbers of every weight that its fingerprint looks at


@dataclass(frozen=True)
class SavedRun:
    """The state of a run, on the host."""

    start: Start
    steps: int
    frame: Tensor | None
    """Newest, float32 [1, C, n, h, w]."""
    control: Tensor | None
    """Control of the newest step, float32 [entries * entry_channels, h, w]."""
    rows: list[RowState]
    decoder: DecoderState
    past: dict[int, Made]
    """Frames and control per step that a later one sees; empty for a model without text."""

    def restore(self, run: Run, device: torch.device) -> None:
        """Bring a run that has just begun, with the same start, to this state."""
        for row, state in zip(run.rows, self.rows, strict=True):
            row.restore(state)
        run.decoder.restore(self.decoder, device)
        run.steps = self.steps
        run.frame, run.control = _on(device, (self.frame, self.control))
        if run.past is not None:
            run.past.made |= {step: _on(device, made) for step, made in self.past.items()}
        run.history.forget()
        run.remember()


@dataclass(frozen=True)
class Replay:
    """Inputs of a run: the same video follows from them on the same device, build and number of threads."""

    start: Start
    controls: Tensor | None
    """Controls of its steps, float32 [n, entries, J, 3] or [n, entries, C, h, w]; None for a model without control."""
    steps: int
    exact: bool
    """False if some steps were taken in batches: the same frames up to rounding."""

    def on(self, device: torch.device) -> Replay:
        """The same with its start on `device`."""
        start = self.start
        image, control, prompt = (
            None if part is None else part.to(device) for part in (start.image, start.control, start.prompt)
        )
        return replace(self, start=Start(image, control, prompt, start.seed))


def fingerprint(model: StreamModel) -> str:
    """A number for the weights of generator and VAE: 64 hexadecimal digits, from a few values of each of them."""
    modules: list[Any] = [model.generator, model.vae]
    return fingerprint_of([item for module in modules for item in sorted(module.state_dict().items())])


def fingerprint_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A number for named weights [...]: 64 hexadecimal digits, from a few values of each of them."""
    parts = []
    digest = hashlib.sha256()
    for name, weight in weights:
        numbers = weight.detach().view(torch.uint8) if weight.element_size() == 1 else weight.detach()
        places = torch.linspace(0, max(weight.numel() - 1, 0), min(SAMPLES, weight.numel())).long()
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        parts.append(numbers.flatten()[places.to(weight.device)].double())
    digest.update(torch.cat([part.cpu() for part in parts]).numpy().tobytes())
    return digest.hexdigest()


def write_state(path: str | Path, model: StreamModel, sampler: Sampler, run: Run) -> None:
    """Write the state of `run`. Raises ValueError for a place that no file can have, OSError where there is no room."""
    tensors = _start_tensors(run.start) | _present({"frame": run.frame, "control": run.control})
    for place, row in enumerate(run.rows):
        state = row.state()
        tensors |= {f"rows.{place}.{name}": getattr(state, name) for name in ("k", "v", "unrotated")}
        tensors[f"rows.{place}.frames"] = torch.tensor(state.frames, dtype=torch.int64)
        tensors[f"rows.{place}.next_frame"] = torch.tensor(state.next_frame)
    for step, (frames, control) in ({} if run.past is None else run.past.made).items():
        tensors |= _present({f"past.{step}.frames": frames, f"past.{step}.control": control})
    decoder = run.decoder.state()
    tensors |= {f"decoder.{name}": tensor for name, tensor in decoder.tensors.items()}
    facts = {"seed": run.start.seed, "steps": run.steps, "rows": len(run.rows), "decoder_size": decoder.size}
    _write(Path(path), STATE, tensors, model, sampler, facts)


def read_state(path: str | Path, model: StreamModel, sampler: Sampler) -> SavedRun:
    """The state in a file. Raises CheckpointError for another file, and one of another model, sampler or grid."""
    tensors, facts = _read(Path(path), STATE, model, sampler)
    with _complete(Path(path), STATE):
        rows = []
        for place in range(facts["rows"]):
            parts: dict[str, Any] = {each.name: tensors[f"rows.{place}.{each.name}"] for each in fields(RowState)}
            parts |= {"next_frame": int(parts["next_frame"]), "frames": tuple(parts["frames"].tolist())}
            rows.append(RowState(**parts))
        layers = {name.removeprefix("decoder."): each for name, each in tensors.items() if name.startswith("decoder.")}
        size = facts["decoder_size"]
        decoder = DecoderState(layers, None if size is None else tuple(size))
        start = _start(tensors, facts, model)
        steps = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("past.")})
        past = {step: (tensors.get(f"past.{step}.frames"), tensors.get(f"past.{step}.control")) for step in steps}
        return SavedRun(start, facts["steps"], tensors.get("frame"), tensors.get("control"), rows, decoder, past)


def write_replay(path: str | Path, model: StreamModel, sampler: Sampler, replay: Replay) -> None:
    """Write a replay. Raises ValueError for a place that no file can have, OSError where there is no room."""
    tensors = _start_tensors(replay.start) | _present({"controls": replay.controls})
    facts = {"seed": replay.start.seed, "steps": replay.steps, "exact": replay.exact}
    _write(Path(path), REPLAY, tensors, model, sampler, facts)


def read_replay(path: str | Path, model: StreamModel, sampler: Sampler) -> Replay:
    """The replay in a file, with a UserWarning if it is not exact.

    Raises CheckpointError for another file, and one of another model, sampler or grid.
    """
    tensors, facts = _read(Path(path), REPLAY, model, sampler)
    with _complete(Path(path), REPLAY):
        _check_replay(Path(path), tensors, facts, model)
        if not facts["exact"]:
            warn_caller(f"{path}: some steps were taken in batches, so its video comes again up to rounding only")
        return Replay(_start(tensors, facts, model), tensors.get("controls"), facts["steps"], facts["exact"])


def _on(device: torch.device, made: Made) -> Made:
    frames, control = (None if each is None else each.to(device) for each in made)
    return frames, control


def _check_replay(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any], model: StreamModel) -> None:
    """Raise CheckpointError for tensors that no session of the model has: the file may come from anybody."""
    config, grid = model.control, model.grid
    shapes: dict[str, tuple[int | None, ...]] = {"start.image": (1, model.config.latent_channels, 1, *grid)}
    if config is not None:
        shapes["start.control"] = (config.entries * config.entry_channels, *grid)
        shapes["controls"] = (facts["steps"], config.entries, *entry_shape(config, grid))
    if model.config.text_width > 0:
        shapes["start.prompt"] = (1, None, model.config.text_width)
    for name, tensor in tensors.items():
        shape, found = shapes.get(name), list(tensor.shape)
        fits = shape is not None and len(shape) == len(found)
        fits = fits and all(want in (None, have) for want, have in zip(shape or (), found, strict=True))
        if not fits or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            wanted = "none of this name" if shape is None else f"finite numbers {list(shape)}"
            raise CheckpointError(f"{path}: expected {name}: {wanted}, got {tensor.dtype} {found}")
    needed = {"controls"} if config is not None and facts["steps"] else set()
    for name in needed - tensors.keys():
        raise KeyError(name)
    require_seed(facts["seed"])


def _present(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _start_tensors(start: Start) -> dict[str, Tensor]:
    return _present({f"start.{name}": getattr(start, name) for name in ("image", "control", "prompt")})


def _start(tensors: dict[str, Tensor], facts: dict[str, Any], model: StreamModel) -> Start:
    named = {name: tensors.get(f"start.{name}") for name in ("image", "control", "prompt")}
    on_device = {name: None if part is None else part.to(model.device) for name, part in named.items()}
    return Start(**on_device, seed=facts["seed"])


def _identity(model: StreamModel, sampler: Sampler) -> dict[str, Any]:
    return {"model": model.name, "grid": list(model.grid), "sampler": repr(sampler), "weights": fingerprint(model)}


def _write(
    path: Path,
    kind: str,
    tensors: dict[str, Tensor],
    model: StreamModel,
    sampler: Sampler,
    facts: dict[str, Any],
) -> None:
    require(path.suffix == ".safetensors", "path", "a name that ends in .safetensors", path)
    content = {"kind": kind, "version": VERSION, **_identity(model, sampler), **facts}
    on_host = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        write_safetensors(partial, on_host, {"aapt_fast": json.dumps(content)})


@contextmanager
def _complete(path: Path, kind: str) -> Iterator[None]:
    """Raise CheckpointError if the `with` block, which takes apart what is in `path`, meets a part that is missing."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the whole {kind}, got one without or with another {error}") from error


def _read(path: Path, kind: str, model: StreamModel, sampler: Sampler) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with open_safetensors(path) as file, _complete(path, kind):
        found = (file.metadata() or {}).get("aapt_fast")
        facts = json.loads(found) if found is not None else {}
        if facts.get("kind") != kind:
            raise CheckpointError(f"{path}: expected the {kind}, got {facts.get('kind', 'tensors of something else')}")
        if facts["version"] != VERSION:
            raise CheckpointError(f"{path}: expected version {VERSION} of such files, got {facts['version']}")
        expected = _identity(model, sampler)
        for name in ("weights", "grid", "sampler"):
            if facts[name] != expected[name]:
                wanted = "the model that wrote it, in the same dtype" if name == "weights" else facts[name]
                got = f"another one ({model.name})" if name == "weights" else expected[name]
                raise CheckpointError(f"{path}: expected {name} of {facts['model']!r}: {wanted}, got {got}")
        # Copied to where torch lays its own tensors: with AVX-512 and two threads, products of others round otherwise.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, facts  # noqa: SIM118, it is no dict
