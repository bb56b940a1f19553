# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast convert` as a user types it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

import aapt_fast
from aapt_fast.cli import main
from aapt_fast.testing.wan import TINY, random_wan


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(random_wan(TINY).state_dict(), tmp_path / "wan.safetensors")
    return tmp_path / "wan.safetensors"


def convert(source: Path, out: Path, *arguments: str) -> int:
    return main(["convert", str(source), "--out", str(out), *arguments])


@pytest.mark.parametrize("as_file", [False, True])
def test_the_last_line_is_the_report(source, tmp_path, capsys, as_file):
    config = json.dumps({"heads": TINY.heads})
    if as_file:
        (tmp_path / "heads.json").write_text(config)
        config = str(tmp_path / "heads.json")
    arguments = ("--config", config, "--dtype", "bfloat16", "--shard-size", "0.00003")
    assert convert(source, tmp_path / "out", *arguments) == 0
    *progress, last = capsys.readouterr().out.splitlines()
    part = json.loads(last)["parts"]["generator"]
    assert part["verified"]["forward"] == "equal" and len(progress) == len(part["files"]) - 2 > 1
    assert aapt_fast.load_generator(tmp_path / "out").config.heads == TINY.heads


def test_verification_can_be_left_out(source, tmp_path, capsys):
    assert convert(source, tmp_path / "out", "--config", '{"heads": 3}', "--no-verify") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["parts"]["generator"]["verified"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the number of heads, as --config '{\"num_heads\": 12}'"),
        (
            ("--config", "{heads"),
            "--config: expected a JSON object or a file with one, got this text, which is no JSON",
        ),
        (("--config", "nowhere.json"), "got nowhere.json, which does not exist"),
        (("--config", "."), "got the file ., which cannot be read: Is a directory"),
        (("--config", sys.executable), "which is no JSON: 'utf-8' codec can't decode"),
        (("--config", '{"horns": 2}'), "--config: expected names out of"),
        (("--config", '{"heads": 3}', "--shard-size", "-1"), "--shard-size: expected a positive number of GiB, got -1"),
        (
            ("--config", '{"heads": 3}', "--shard-size", "nan"),
            "--shard-size: expected a positive number of GiB, got nan",
        ),
    ],
)
def test_mistakes_are_one_line(source, tmp_path, capsys, arguments, message):
    assert convert(source, tmp_path / "out", *arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("aapt-fast convert: ") and message in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x80"])
def test_files_that_are_no_weights(tmp_path, capsys, content):
    (tmp_path / "bad.pt").write_bytes(content)
    assert convert(tmp_path / "bad.pt", tmp_path / "out") == 2
    assert "bad.pt: expected" in capsys.readouterr().err
    assert convert(tmp_path / "nothing", tmp_path / "out") == 2
    assert "got nothing there" in capsys.readouterr().err


def test_a_stopped_conversion_leaves_no_hidden_folder(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "aapt_fast.models.files.convert.write_shards", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
    )
    before = sorted(tmp_path.iterdir())
    assert convert(source, tmp_path / "out", "--config", '{"heads": 3}') == 130
    assert capsys.readouterr().err == "aapt-fast convert: stopped by SIGTERM; no file was written\n"
    assert sorted(tmp_path.iterdir()) == before
