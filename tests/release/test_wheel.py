# SPDX-License-Identifier: Apache-2.0
"""The wheel without CUDA, as a user gets it: built offline from the sdist, and run with its dependencies alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]
NO_NETWORK = {"PIP_NO_INDEX": "1", **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")}

# Prints the memory that the public names take beside torch and NumPy, in bytes.
MEMORY = """
import resource, torch, numpy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import aapt_fast
for name in aapt_fast.__all__:
    getattr(aapt_fast, name)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    program = f"from scikit_build_core.build import build_sdist; build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    (found,) = folder.iterdir()
    return found


def build(sdist: Path, folder: Path, umask: int) -> Path:
    """Unpack an sdist in `folder`, and build its wheel there without the network."""
    before = os.umask(umask)
    try:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
    finally:
        os.umask(before)
    (source,) = folder.iterdir()
    for path in source.rglob("*"):  # as an unpacking under this umask leaves them
        path.chmod(path.stat().st_mode & ~umask)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-build-isolation"]
    environment = {**os.environ, **NO_NETWORK, "AAPT_CUDA": "OFF"}
    subprocess.run(
        [*command, "--no-deps", "-w", folder / "dist", source], check=True, env=environment, umask=umask, timeout=250
    )
    (wheel,) = (folder / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(sdist, tmp_path_factory.mktemp("built"), 0o022)


def test_the_same_sources_give_the_same_bytes(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    """In another folder, with another umask and later."""
    again = build(sdist, tmp_path / "a folder with another name", 0o077)
    assert again.name == wheel.name and again.read_bytes() == wheel.read_bytes()


def test_it_has_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.stat().st_size < 48e6
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"aapt_fast"}
    assert [name for name in names if name.endswith(".so")] == [
        f"aapt_fast/_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    ]
    tracked = subprocess.run(
        ["git", "ls-files", "python/aapt_fast"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(tracked) <= {f"python/{name}" for name in names}


def test_pip_refuses_the_wheel_of_another_python(wheel: Path, tmp_path: Path) -> None:
    other = tmp_path / re.sub(r"-cp3\d+-cp3\d+-", "-cp399-cp399-", wheel.name)
    other.symlink_to(wheel)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--dry-run", other]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "is not a supported wheel on this platform" in done.stderr


def test_auditwheel_finds_it_fit_for_other_machines(wheel: Path) -> None:
    """Debian 12 gives manylinux_2_34; an older system would give a smaller number."""
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True, check=True
    )
    (glibc,) = set(re.findall(r"manylinux_2_(\d+)_", shown.stdout))
    assert int(glibc) <= 34


# ---- a new environment ----


def dependencies(distribution: str) -> set[str]:
    """A distribution and all that it needs, as pip would install it here."""
    found: set[str] = set()
    waiting = [distribution]
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            wanted = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and links to what it declares to need, with no compiler and no tool on its path."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, wheel], check=True)
    for name in dependencies("aapt_fast") - {"aapt-fast", "setuptools", "pip"}:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__", "bin"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


def run(clean: Path, arguments: Sequence[str]) -> str:
    """Run a program of the clean environment, with nothing else on PATH; returns its output."""
    program, *rest = arguments
    environment = {"HOME": str(clean), "PATH": str(clean / "bin")}
    done = subprocess.run(
        [clean / "bin" / program, *rest], capture_output=True, text=True, env=environment, cwd=clean, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_doctor_finds_nothing_wrong(clean: Path) -> None:
    report = json.loads(run(clean, ["aapt-fast", "doctor", "--json"]))
    assert report["faults"] == [] and report["build"]["cuda"] is False
    assert not any(report["extras"].values())


def test_it_generates_48_frames(clean: Path) -> None:
    run(clean, ["aapt-fast", "generate", "--motion", "walk", "--frames", "48", "--out", "walk"])
    assert len(list((clean / "walk").glob("*.png"))) == 48


def test_the_public_names_take_little_memory_beside_torch(clean: Path) -> None:
    assert int(run(clean, ["python", "-c", MEMORY])) < 300e6


def test_cibuildwheel_would_build_one_wheel_per_python() -> None:
    command = [sys.executable, "-m", "cibuildwheel", "--platform", "linux", "--archs", "x86_64"]
    shown = subprocess.run(
        [*command, "--print-build-identifiers"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [f"cp3{minor}-manylinux_x86_64" for minor in range(10, 16)]


def test_a_build_that_knows_where_cutlass_is_downloads_nothing_else() -> None:
    """Only scikit-build-core, pybind11, cmake and ninja are left, which --no-build-isolation takes from here."""
    program = "from scikit_build_core.build import get_requires_for_build_wheel as ask; print(*ask())"
    for name, asked in (("CUTLASS_DIR", False), ("AAPT_UNUSED", True)):
        environment = {key: value for key, value in os.environ.items() if key not in ("CUTLASS_DIR", "AAPT_CUDA")}
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env={**environment, name: "/cutlass"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("nvidia-cutlass" in done.stdout) is asked
