# SPDX-License-Identifier: Apache-2.0
"""The rule that chooses between a compiled kernel and the torch composition."""

from __future__ import annotations

import subprocess
import sys
import threading
import types
import warnings

import pytest
import torch

from aapt_fast.ops import kernels
from aapt_fast.ops.kernels import run_kernel, selection, use_kernels

CPU = torch.device("cpu")
KERNEL = "paged_attention/portable"


class Unsupported(ValueError):
    """What a compiled module raises for arguments its kernel does not do."""


def fake_module(cuda: bool = False, emulated: bool = True, **functions) -> types.ModuleType:
    """A compiled module whose one kernel returns "ran"."""
    module = types.ModuleType("fake")
    module.build_info = lambda: {"cuda": cuda, "emulated": emulated}
    module.Unsupported = Unsupported
    module.paged_attention_portable = lambda: "ran"
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def run(device: torch.device = CPU):
    return run_kernel("paged_attention", device, lambda kernel, stream: kernel())


def refuse():
    raise Unsupported("q: expected a head width of 64, got 80")


@pytest.fixture
def verified(monkeypatch):
    """Every kernel counts as verified by a GPU."""
    monkeypatch.setattr(kernels, "is_verified", lambda kernel, module, device: True)


def test_a_kernel_that_no_gpu_has_verified_is_off():
    with use_kernels("verified", extension=fake_module()):
        assert run() is None


@pytest.mark.parametrize("names", [(KERNEL,), ("all",), ("verified", KERNEL)])
def test_a_kernel_that_is_asked_for_runs(names):
    with use_kernels(*names, extension=fake_module()):
        assert run() == "ran"


def test_a_verified_kernel_runs_unless_kernels_are_off(verified):
    with use_kernels("verified", extension=fake_module()):
        assert run() == "ran"
        with use_kernels("none", extension=fake_module()):
            assert run() is None
        assert run() == "ran"


def test_a_kernel_of_another_op_does_not_run():
    with use_kernels("all", extension=fake_module()):
        assert run_kernel("causal_conv3d", CPU, lambda kernel, stream: kernel()) is None


@pytest.mark.parametrize(("cuda", "emulated"), [(True, False), (False, False)])
def test_a_module_for_another_device_is_not_used(cuda, emulated):
    with use_kernels("all", extension=fake_module(cuda, emulated)):
        assert run() is None


def test_a_kernel_that_is_asked_for_on_a_gpu_has_to_be_there():
    module = fake_module()
    del module.paged_attention_portable
    with use_kernels("all", extension=module):
        assert run() is None  # the CPU never needs a kernel
        with pytest.raises(
            RuntimeError, match="paged_attention/sm90: expected a build of aapt_fast with this kernel and CUDA"
        ):
            run(torch.device("cuda"))
    with use_kernels("verified", extension=module):
        assert run(torch.device("cuda")) is None


def test_arguments_a_kernel_does_not_do_are_an_error_if_it_was_asked_for():
    module = fake_module(paged_attention_portable=refuse)
    with (
        use_kernels("all", extension=module),
        pytest.raises(ValueError, match="q: expected a head width of 64, got 80"),
    ):
        run()


def test_arguments_a_verified_kernel_does_not_do_are_reported_and_the_composition_runs(verified):
    module = fake_module(paged_attention_portable=refuse)
    expected = f"{KERNEL} does not run: q: expected a head width of 64, got 80; paged_attention runs as a torch"
    with use_kernels("verified", extension=module), pytest.warns(UserWarning, match=expected):
        assert run() is None


def test_the_next_kernel_of_the_op_runs_where_the_preferred_one_does_not(verified):
    module = fake_module(paged_attention_sm90=refuse)
    for names in (("all",), ("verified",)):
        with use_kernels(*names, extension=module), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert run() == "ran"
    with use_kernels("paged_attention/sm90", extension=module), pytest.raises(ValueError, match="head width of 64"):
        run()  # asked for by its own name


def test_the_preferred_kernel_runs_first(verified):
    with use_kernels("verified", extension=fake_module(paged_attention_sm90=lambda: "preferred")):
        assert run() == "preferred"
    with use_kernels(KERNEL, extension=fake_module(paged_attention_sm90=lambda: "preferred")):
        assert run() == "ran"


def test_other_errors_of_a_kernel_pass_through(verified):
    def fail():
        raise RuntimeError("cudaLaunchKernelEx: out of resources")

    module = fake_module(paged_attention_portable=fail)
    with use_kernels("verified", extension=module), pytest.raises(RuntimeError, match="out of resources"):
        run()


def test_the_choice_ends_with_its_block_and_belongs_to_its_thread():
    before, seen = selection(), []
    with use_kernels("all"):
        thread = threading.Thread(target=lambda: seen.append(selection()))
        thread.start()
        thread.join()
        assert selection().names == ("all",)
    assert seen == [before] and selection() == before


@pytest.mark.parametrize("names", [("nonsense",), (), ("all", "paged_attention")])
def test_unknown_names_are_refused(names):
    with pytest.raises(ValueError, match=r"names: expected some of all, .*, got (nonsense|none|paged_attention)"):
        use_kernels(*names).__enter__()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "('verified',)"), ("none", "('none',)"), (f"verified,{KERNEL}", f"('verified', '{KERNEL}')")],
)
def test_the_environment_chooses_for_the_process(value, expected, monkeypatch):
    monkeypatch.delenv("AAPT_KERNELS", raising=False)
    if value is not None:
        monkeypatch.setenv("AAPT_KERNELS", value)
    kernels._selection_of_the_process.cache_clear()
    try:
        assert str(selection().names) == expected
    finally:
        kernels._selection_of_the_process.cache_clear()


def test_a_wrong_environment_is_an_error_in_words(monkeypatch):
    monkeypatch.setenv("AAPT_KERNELS", "fast")
    kernels._selection_of_the_process.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"AAPT_KERNELS: expected some of .*, got fast"):
            selection()
    finally:
        kernels._selection_of_the_process.cache_clear()


def test_ops_on_the_cpu_are_quiet_and_need_no_kernel():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run() is None


def test_dtype_codes_are_those_of_the_compiled_module():
    program = "from aapt_fast.ops._load import extension; print(getattr(extension(), 'dtypes', None))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    if printed == "None":
        pytest.skip("this build of aapt_fast has no kernels")
    assert eval(printed) == {str(dtype).removeprefix("torch."): code for dtype, code in kernels.DTYPE_CODES.items()}
