# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from aapt_fast import limits
from aapt_fast.limits import (
    available_memory,
    in_units,
    require_disk,
    require_empty_folder,
    require_file_target,
    require_folder,
    require_memory,
    require_writable,
)

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB of memory available, and a control group without a limit in the folder that is given."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable: {8 * 2**20} kB\n")
    monkeypatch.setattr(limits, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(limits, "CONTAINER", tmp_path)
    return tmp_path


def limit_container(folder: Path, limit: str) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{3 * GIB}\n")
    (folder / "memory.stat").write_text(f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}\n")


def test_available_memory_is_what_the_system_says(machine: Path) -> None:
    assert available_memory() == 8 * GIB
    limit_container(machine, "max")
    assert available_memory() == 8 * GIB


def test_a_container_may_have_less(machine: Path) -> None:
    limit_container(machine, str(4 * GIB))
    assert available_memory() == 3 * GIB  # 4 - 3 used, of which 2 are file contents
    limit_container(machine, str(40 * GIB))
    assert available_memory() == 8 * GIB


def test_a_system_without_meminfo_counts_its_pages(machine: Path) -> None:
    (machine / "meminfo").unlink()
    found = available_memory()
    assert found is not None and found > 2**27


def test_memory_that_is_not_there_is_refused_before_work(machine: Path) -> None:
    require_memory("--scale", 8 * GIB)
    expected = r"^--scale: expected a value that fits into the 8.59 GB of memory that are available, got one that needs"
    with pytest.raises(ValueError, match=expected + r" 22\.0 GB$"):
        require_memory("--scale", 22 * 10**9)
    with pytest.raises(ValueError, match=r"needs 1\.00e\+485 PB"):
        require_memory("--scale", 10**500)


def test_disk_that_is_not_free_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "yet.mp4"
    require_disk("--frames", path, 1)
    needed = 2 * shutil.disk_usage(tmp_path).total
    with pytest.raises(ValueError, match=rf"^--frames: expected .* free on the disk of {tmp_path}, got one that needs"):
        require_disk("--frames", path, needed)
    assert not path.parent.parent.exists()


def test_a_folder_may_be_new_but_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "a" / "b"):
        require_folder("--out", path)
    file = tmp_path / "x.mp4"
    file.touch()
    for path in (file, file / "inside"):
        with pytest.raises(ValueError, match=rf"^--out: expected a folder, .* got {path}, where {file} is a file$"):
            require_folder("--out", path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write to")
def test_a_folder_in_which_no_file_can_be_made_is_named(tmp_path: Path) -> None:
    """The superuser may write everywhere by right, and still not in /proc."""
    for check in (require_writable, lambda argument, folder: require_folder(argument, folder / "new")):
        with pytest.raises(OSError, match=r"^--out: expected a folder that can be written to, got /proc: no file can"):
            check("--out", Path("/proc"))
    require_writable("--out", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, why in (("nowhere", "which does not exist"), ("file", "which is a file")):
        with pytest.raises(OSError, match=rf"^--sheet: expected a folder that exists, got {tmp_path / name}, {why}$"):
            require_writable("--sheet", tmp_path / name)


def test_a_file_replaces_no_folder_and_no_device(tmp_path: Path) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.touch()
    os.mkfifo(pipe)
    for path in (file, tmp_path / "new"):
        require_file_target("--json", path)
    for path, got in ((tmp_path, "the folder .*"), (pipe, ".*/pipe, which is a device, a pipe or a socket")):
        with pytest.raises(ValueError, match=f"^--json: expected a file, got {got}$"):
            require_file_target("--json", path)


def test_an_empty_folder_is_new_or_has_no_entry(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "new"):
        require_empty_folder("--out", path)
    (tmp_path / "file").touch()
    for path, got in ((tmp_path, f"{tmp_path} with file"), (tmp_path / "file", ".*/file, which is no folder")):
        with pytest.raises(ValueError, match=f"^--out: expected a new or empty folder, got {got}$"):
            require_empty_folder("--out", path)


def test_a_name_that_is_too_long_is_refused_under_the_name_of_its_option(tmp_path: Path) -> None:
    for check in (require_file_target, require_folder, require_empty_folder):
        with pytest.raises(ValueError, match=r"^--out: expected a name of at most 220 bytes, got one of 300$"):
            check("--out", tmp_path / ("x" * 300))
        with pytest.raises(ValueError, match=r"^--out: expected a path that is not too long for this system, got"):
            check("--out", tmp_path / ("x" * 300) / "y")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (512, "512 bytes"),
        (123_000, "123 KB"),
        (10**6, "1.00 MB"),
        (1_234_567_890, "1.23 GB"),
        (43_210 * 10**6, "43.2 GB"),
        (4_321 * 10**9, "4.32 TB"),
    ],
)
def test_sizes_are_in_the_unit_that_fits(count: int, text: str) -> None:
    assert in_units(count) == text
