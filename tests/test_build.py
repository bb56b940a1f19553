# SPDX-License-Identifier: Apache-2.0
"""The build: what the compiled module says about itself, life without it, and the refusals of the CMake files."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aapt_fast
from aapt_fast.ops._load import absence, extension, extension_or_none
from aapt_fast.ops.kernels import KERNELS

REPOSITORY = Path(__file__).parents[1]

# A Python program that starts as on a machine without the compiled module.
WITHOUT_EXTENSION = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname == "aapt_fast._C":
            raise ModuleNotFoundError(name=fullname)

sys.meta_path.insert(0, Blocker())
import aapt_fast
from aapt_fast.ops import _load
assert _load.extension_or_none() is None
_load.extension()
"""


# ---- the compiled module ----


def test_versions_agree():
    version = importlib.metadata.version("aapt_fast")
    assert extension().__version__ == extension().build_info()["version"] == aapt_fast.__version__ == version


def test_build_info_is_consistent():
    info = extension().build_info()
    assert info["build_type"] == "Release"  # anything else leaves the asserts in
    assert info["emulated"] is False
    assert re.fullmatch(r"\w+ \d+[\d.]*", info["compiler"])
    if info["cuda"]:
        assert re.fullmatch(r"\d+\.\d+\.\d+", info["cuda_version"])
        archs = info["cuda_archs"].split(",")
        assert all(re.fullmatch(r"\d+a?-(real|virtual)", arch) for arch in archs), archs
        assert ("90a-real" in archs) == ("90-real" in archs)
    else:
        assert (info["cuda_version"], info["cuda_archs"], info["cutlass_version"]) == ("", "", "")


def test_without_a_visible_device_none_is_counted_and_no_kernel_is_on():
    hidden = {name: value for name, value in os.environ.items() if name != "AAPT_KERNELS"}
    hidden["CUDA_VISIBLE_DEVICES"] = ""
    program = (
        "import json\nfrom aapt_fast.cli.doctor import examine\nfrom aapt_fast.ops._load import extension\n"
        "print(json.dumps([extension().device_count(), examine()['kernels']]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=hidden)
    assert result.returncode == 0, result.stderr
    count, kernels = json.loads(result.stdout)
    assert count == 0
    assert tuple(kernels) == tuple(KERNELS)
    assert not any(facts["on"] for facts in kernels.values())
    reason = "no GPU here" if extension().build_info()["cuda"] else "the compiled module was built without CUDA"
    assert {facts["why"] for facts in kernels.values()} == {reason}


def test_the_module_needs_no_cuda_library():
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("ldd is not on PATH")
    needed = subprocess.run([ldd, str(extension().__file__)], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed
    assert not re.search("cuda|nvidia|not found", needed), needed


def test_the_module_is_small():
    """A wheel without the bundled models stays far below 64 MB: most of it is this file, a third as large in there."""
    assert Path(str(extension().__file__)).stat().st_size < 16e6


def test_the_package_brings_its_data():
    package = Path(aapt_fast.__file__).parent
    assert (package / "py.typed").is_file()
    models = sorted(path.parent.name for path in package.glob("assets/*/model.safetensors"))
    assert models == ["mini-anyone", "mini-person"]


def test_device_info_describes_every_device():
    module = extension()
    for device in range(module.device_count()):
        info = module.device_info(device)
        assert info["name"] and info["compute_capability"] >= (5, 0) and info["total_memory"] > 0
        assert info["driver_version"] >= "1" and info["runtime_version"] >= "1" and info["multiprocessors"] > 0


@pytest.mark.parametrize("offset", [-1, None], ids=["negative", "past the end"])
def test_device_info_refuses_other_devices(offset):
    module = extension()
    device = module.device_count() if offset is None else offset
    with pytest.raises(IndexError, match=rf"device: expected .*{device}"):
        module.device_info(device)


# ---- without the compiled module ----


def test_import_works_without_the_extension():
    result = subprocess.run([sys.executable, "-c", WITHOUT_EXTENSION], capture_output=True, text=True)
    assert result.returncode == 1
    assert "RuntimeError: aapt_fast._C: expected the compiled module, got none. Build it" in result.stderr


def test_an_extension_that_does_not_load_is_an_error(monkeypatch):
    def fail(name: str) -> None:
        raise ImportError("GLIBC_9.9 not found")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match=r"expected a module built for this machine, got GLIBC_9\.9 not found"):
        extension_or_none.__wrapped__()


def test_the_module_of_another_python_is_named(tmp_path):
    (tmp_path / "_C.cpython-399-x86_64-linux-gnu.so").touch()
    here = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    assert absence(tmp_path).startswith(
        f"aapt_fast._C: expected the compiled module for {here}, got that of another Python, "
        f"_C.cpython-399-x86_64-linux-gnu.so. Install the wheel for {here}"
    )


def test_loading_happens_once():
    assert extension_or_none() is extension()


# ---- the CMake files ----


def configure(source: Path, build: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`cmake -S source -B build` with the output of both streams in one line of words."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if cmake is None:
        pytest.skip("cmake is neither in this environment nor on PATH")
    result = subprocess.run(
        [cmake, "-S", source, "-B", build, *options],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    result.stdout = " ".join((result.stdout + result.stderr).split())
    return result


def test_an_unknown_cuda_setting_is_refused(tmp_path):
    result = configure(REPOSITORY, tmp_path, "-DAAPT_CUDA=bogus")
    assert result.returncode != 0
    assert "AAPT_CUDA: expected AUTO, ON or OFF, got 'bogus'" in result.stdout


@pytest.mark.parametrize("setting", ["AUTO", "ON"])
def test_a_broken_nvcc_is_never_a_quiet_cpu_build(tmp_path, setting):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho cannot find -lcudart_static\nexit 1\n")
    nvcc.chmod(0o755)
    result = configure(REPOSITORY, tmp_path / "build", f"-DAAPT_CUDA={setting}", CUDACXX=str(nvcc))
    assert result.returncode != 0
    assert "cannot find -lcudart_static" in result.stdout
    assert "set AAPT_CUDA=OFF for a build without CUDA" in result.stdout


def test_probes_need_kernels(tmp_path):
    pybind11 = pytest.importorskip("pybind11").get_cmake_dir()
    result = configure(REPOSITORY, tmp_path, "-DAAPT_CUDA=OFF", "-DAAPT_PROBES=ON", f"-Dpybind11_DIR={pybind11}")
    assert result.returncode != 0
    assert "AAPT_PROBES: expected a build with CUDA or AAPT_EMULATE=ON, got neither" in result.stdout


def test_a_wheel_has_no_emulated_kernels(tmp_path):
    result = configure(REPOSITORY, tmp_path, "-DAAPT_EMULATE=ON", "-DSKBUILD_STATE=wheel")  # as scikit-build-core says
    assert result.returncode != 0
    assert "AAPT_EMULATE: expected a build for tests, got one for a wheel" in result.stdout


@pytest.fixture
def cutlass_user(tmp_path) -> Path:
    """A CMake project without a language that asks for CUTLASS and prints the version found."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(user LANGUAGES NONE)\n"
        f'set(Python_EXECUTABLE "{sys.executable}")\ninclude("{REPOSITORY}/cmake/AaptCutlass.cmake")\n'
        "get_property(version GLOBAL PROPERTY AAPT_CUTLASS_VERSION)\n"
        'message(STATUS "found [${version}]")\nget_target_property(_ aapt_cutlass INTERFACE_INCLUDE_DIRECTORIES)\n'
    )
    return project


def test_cutlass_is_taken_from_cutlass_dir(tmp_path, cutlass_user):
    header = tmp_path / "cutlass" / "include" / "cutlass" / "version.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 2\n#define CUTLASS_PATCH 0\n")
    result = configure(cutlass_user, tmp_path / "build", CUTLASS_DIR=str(tmp_path / "cutlass"))
    assert result.returncode == 0, result.stdout
    assert "found [4.2.0]" in result.stdout


def test_a_missing_cutlass_is_named(tmp_path, cutlass_user):
    result = configure(cutlass_user, tmp_path / "build", CUTLASS_DIR=str(tmp_path / "nothing"))
    assert result.returncode != 0
    assert "CUTLASS: expected include/cutlass/version.h in CUTLASS_DIR" in result.stdout
