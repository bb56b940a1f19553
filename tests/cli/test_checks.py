# SPDX-License-Identifier: Apache-2.0
"""Mistakes that need no torch are reported before its import, each in a line that begins with the option."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

MISTAKES = [
    "generate --out x.gif --model nothing",
    "generate --out x.gif --model aapt-8b",
    "generate --out x.gif --model text.safetensors",
    "generate --out x.gif --motion fly",
    "generate --out x.gif --image no.png",
    "generate --out x.gif --image 16",
    "generate --out x.gif --frames 0",
    "generate --out x.gif --nfe 0",
    "generate --out x.gif --scale 0",
    "generate --out x.gif --scale 1000",
    "generate --out x --scale 300 --frames 2000000000",
    "generate --out x.gif --motion walk:999999999,wave:999999999,walk:999999999",
    "generate --out x.gif --controls few.npy",
    "generate --out x.gif --controls pixels.npy",
    "generate --out x.gif --seed 99999999999999999999",
    "generate --out x.gif --controls no.npy",
    "generate --out x.gif --controls text.npy",
    "generate --out x.gif --controls no.npy --motion walk",
    "generate --out x.gif --sheet x.txt",
    "generate --out x.gif --sheet nowhere/x.png",
    "generate --out x.avi",
    "generate --out x --image https://example.org/x.png",
    "generate --out x --controls ~/no.npy",
    "generate --out nowhere/x.gif",
    "doctor --plan nothing",
    "doctor --window 3",
    "doctor --plan nano --window 0",
    "doctor --plan nano --resolution 3",
    "doctor --offload-text",
    "verify --shapes nothing",
    "verify --shapes text.npy",
    "doctor --plan nano --resolution 5x5",
    "doctor --plan mini-anyone --resolution 64x64",
    "doctor --plan nanno",
    "generate --out x.gif --device tpu",
    "generate --out x.gif --model mini-persn",
    "verify --kernels kv_write/portabel",
    "bench frame --resolution 737x416",
    "bench frame --json /dev/stdout",
    "train person --out run",
    "train anyone --out run --trial",
    f"generate --out {'x' * 300}.gif",
    f"generate --out {'x' * 300}",
    "train person --out x --start mini-person",
    "train anyone --out x --start nothing",
    "train person --out text.npy",
    "train person --out full",
    "evaluate nothing",
    "evaluate --row a",
    "evaluate --row a=nano",
    "evaluate --clips 0",
    "evaluate --frames 8",
    "evaluate --out text.npy",
    "evaluate --out full",
    "bench frame --preset nothing",
    "bench frame --resolution 3",
    "bench frame --steps 1",
    "bench frame --target 0",
    "bench frame --json text.npy/x.json",
    "bench frame --json no/x.json",
    "bench frame --json pipe.png",
    "verify --json pipe.png",
    "generate --out /dev/full",
    "generate --out pipe.gif",
    "generate --out x.gif --sheet pipe.png",
    "bench frame --preset aapt-8b --limit nan",
    "convert nothing --out x",
    "convert nano --out x",
    "convert text.npy --out x",
    "convert text.safetensors --out x",
    "convert random.bin --out x",
    "convert lora.safetensors --out x",
    "convert empty --out x",
    "convert mini-person --out text.npy",
    "convert mini-person --out full",
    "convert mini-person --out x --config no.json",
    "convert mini-person --out x --shard-size 0",
]
REPORT = """
import contextlib, io, json, sys
from aapt_fast.cli import main
found = []
for line in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(line.split())
    found.append([status, said.getvalue(), "torch" in sys.modules])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, bool]]:
    """Status, message, and whether torch is imported by then, of all mistakes, made in one process."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("text.npy", "text.safetensors"):
        (folder / name).write_text("words")
    (folder / "random.bin").write_bytes(bytes(range(200, 256)))
    save_file({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 2)}, folder / "lora.safetensors")
    np.save(folder / "few.npy", np.zeros((8, 5, 3)))
    np.save(folder / "pixels.npy", np.full((8, 19, 3), 300.0))
    for name in ("empty", "full"):
        (folder / name).mkdir()
    (folder / "full" / "x").touch()
    for name in ("pipe.gif", "pipe.png"):
        os.mkfifo(folder / name)
    (folder / "run").mkdir()
    (folder / "run" / "recipe.json").write_text('{"name": "mini-anyone", "start": "mini-person"}')
    before = sorted(folder.rglob("*"))
    command = [sys.executable, "-c", REPORT, json.dumps(MISTAKES)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert sorted(folder.rglob("*")) == before
    return dict(zip(MISTAKES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_reported_before_torch_is_imported(reports: dict[str, tuple[int, str, bool]], line: str) -> None:
    status, said, torch_is_imported = reports[line]
    command, *words = line.split()
    assert status == 2 and said.count("\n") == 1 and not torch_is_imported
    subject = said.removeprefix(f"aapt-fast {command}: ").partition(": expected ")[0].partition(" ")[0]
    assert subject.partition(",")[0] in (*words, "model", "source"), said


@pytest.mark.parametrize(
    "line", ["generate --out x.gif --model aapt-8b", "evaluate --row a=nano", "convert nano --out x"]
)
def test_a_preset_is_told_from_a_model(reports: dict[str, tuple[int, str, bool]], line: str) -> None:
    said = reports[line][1]
    assert "expected a model with trained weights (mini-anyone, mini-person, or a file), got " in said
    assert "a preset with random weights for `aapt-fast bench frame` only" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "generate --out x --image https://example.org/x.png",
            "got https://example.org/x.png: a URL, and nothing is downloaded here; download the file and give its path",
        ),
        ("generate --out x --controls ~/no.npy", "got ~/no.npy: nothing there; ~ is not expanded here; give /"),
        ("generate --out x.avi", "or a folder without a dot in its name, got x.avi"),
        (
            "generate --out x.gif --scale 1000",
            "--scale: expected 1 to 682 for a video of 96 x 96 pixels, got 1000",
        ),
        ("generate --out x.gif --controls few.npy", "expected shape [frames, 19, 3], got shape [8, 5, 3]"),
        ("convert lora.safetensors --out x", "got a LoRA file"),
        ("convert mini-person --out full", "expected a new or empty folder, got full with x"),
        (
            "train person --out full",
            "--out: expected a new or empty folder, or that of a training that has begun, got full with x",
        ),
        ("doctor --plan nano --resolution 5x5", "--resolution width: expected a positive multiple of 16, got 5"),
        ("doctor --plan mini-anyone --resolution 64x64", "expected 96x96, that of the bundled mini-anyone, got 64x64"),
        (
            "doctor --plan nanno",
            "expected aapt-8b | mini-person | nano | nano-text | mini-anyone, got nanno, did",
        ),
        ("generate --out x.gif --device tpu", "--device: expected cpu, cuda or cuda:N, got tpu"),
        ("generate --out x.gif --model mini-persn", "got mini-persn, did you mean mini-person?"),
        ("verify --kernels kv_write/portabel", "got kv_write/portabel, did you mean kv_write/portable?"),
        ("bench frame --json /dev/stdout", "got /dev/stdout, whose last line is that document already"),
        (
            "train person --out run",
            "recipe mini-person from nothing, got run, which holds recipe mini-anyone",
        ),
        (
            "train anyone --out run --trial",
            "one of a trial of recipe mini-anyone from mini-person, got run",
        ),
        (f"generate --out {'x' * 300}.gif", "--out: expected a name of at most 220 bytes, got one of 304"),
        (f"generate --out {'x' * 300}", "--out: expected a name of at most 220 bytes, got one of 300"),
        ("bench frame --json pipe.png", "expected a file, got pipe.png, which is a device, a pipe or a socket"),
        ("generate --out /dev/full", "--out: expected a new or empty folder, got /dev/full, which is no folder"),
        ("bench frame --json no/x.json", "expected a folder that exists, got no, which does not exist"),
    ],
)
def test_what_is_not_there_is_recognised(reports: dict[str, tuple[int, str, bool]], line: str, said: str) -> None:
    assert said in reports[line][1]


def test_an_empty_path_is_called_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from aapt_fast.cli import main

    for option in ("--out", "--sheet", "--controls"):
        with pytest.raises(SystemExit, match="2"):
            main(["generate", "--out", str(tmp_path / "x"), option, ""])
        assert f"generate: {option}: expected a file or folder, got an empty text" in capsys.readouterr().err
    for line in (
        ["convert", "", "--out", "x"],
        ["convert", "mini-person", "--config", "", "--out", "x"],
        ["evaluate", ""],
    ):
        assert main(line) == 2
        assert capsys.readouterr().err.endswith(", got an empty text\n")


def test_advice_for_python_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from aapt_fast.cli import main

    save_file({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    save_file({"patch_embedding.weight": torch.zeros(2, 2)}, tmp_path / "wan.safetensors")
    for name, advice in (
        ("lora", "in Python, load_generator merges it"),
        ("wan", "in Python, load_generator reads it"),
    ):
        assert (
            main(["generate", "--model", str(tmp_path / f"{name}.safetensors"), "--out", str(tmp_path / "x.gif")]) == 2
        )
        assert f"; {advice}" in capsys.readouterr().err
