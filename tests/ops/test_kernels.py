# SPDX-License-Identifier: Apache-2.0
"""The rule that chooses between a compiled kernel and the torch composition."""

from __future__ import annotations

import threading
import types
import warnings

import pytest
import torch

from aapt_fast.ops import kernels, record
from aapt_fast.ops._load import extension
from aapt_fast.ops.kernels import (
    KERNELS,
    Selection,
    forget_record,
    obstacle,
    record_for,
    run_kernel,
    running_kernel,
    selection,
    use_kernels,
)
from aapt_fast.ops.record import Identity, Verified

CPU, GPU = torch.device("cpu"), torch.device("cuda")
KERNEL = "paged_attention/portable"


class Unsupported(ValueError):
    """What a compiled module raises for arguments its kernel does not do."""


def fake_module(cuda: bool = False, emulated: bool = True, **functions) -> types.ModuleType:
    """A compiled module whose one kernel writes a word into its results."""
    module = types.ModuleType("fake")
    module.build_info = lambda: {"cuda": cuda, "emulated": emulated}
    module.Unsupported = Unsupported
    module.paged_attention_portable = write
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def write(word: str, results: list[str], stream: tuple[int, int]) -> None:
    results.append(word)


def run(device: torch.device = CPU) -> str | None:
    def bind(kernel: kernels.Kernel, word: str) -> tuple[list[str], tuple[str, list[str]]]:
        results: list[str] = []
        return results, (word, results)

    found = run_kernel("paged_attention", device, bind, ("ran",))
    return None if found is None else f"{found[1]} {''.join(found[0])}"


def refuse(*_arguments) -> None:
    raise Unsupported("q: expected a head width of 64, got 80")


@pytest.fixture
def hopper(monkeypatch):
    """torch knows a GPU of compute capability 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "stream_of", lambda device: (0, 0))


def test_no_kernel_is_on_by_itself():
    for names in ("auto", "none"):
        with use_kernels(names, extension=fake_module()):
            assert run() is None and running_kernel("paged_attention", CPU) is None


@pytest.mark.parametrize("names", [(KERNEL,), ("all",), ("auto", KERNEL)])
def test_a_kernel_that_the_user_chooses_runs(names):
    with use_kernels(*names, extension=fake_module()):
        assert run() == f"{KERNEL} ran" and running_kernel("paged_attention", CPU) == KERNEL
        with use_kernels("none", extension=fake_module()):
            assert run() is None
        assert run() == f"{KERNEL} ran"


def test_a_kernel_of_another_op_does_not_run():
    with use_kernels("all", extension=fake_module()):
        assert run_kernel("causal_conv3d", CPU, lambda kernel: (None, ()), ()) is None


@pytest.mark.parametrize(("cuda", "emulated"), [(True, False), (False, False)])
def test_a_module_for_another_device_is_not_used(cuda, emulated):
    with use_kernels("all", extension=fake_module(cuda, emulated)):
        assert run() is None


def test_a_kernel_that_is_named_has_to_be_there_on_a_gpu():
    module = fake_module()
    del module.paged_attention_portable
    with use_kernels(KERNEL, extension=module):
        with pytest.warns(UserWarning, match=f"{KERNEL} does not run: the compiled module does not have it; paged_att"):
            assert run() is None  # the CPU never needs a kernel
        with pytest.raises(RuntimeError, match=f"{KERNEL}: expected a kernel that can run on cuda, got none: the mach"):
            run(GPU)


def test_a_build_without_kernels_for_the_cpu_warns_once_that_a_named_one_does_not_run():
    expected = f"{KERNEL} does not run: the compiled module was built without CUDA; paged_attention runs as a torch"
    with use_kernels(KERNEL, extension=fake_module(False, False)), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert run() is None
    assert [str(warning.message)[: len(expected)] for warning in caught] == [expected]


def test_all_says_that_a_build_without_cuda_has_no_kernel_for_the_gpu():
    expected = "sm90 does not run: the machine has a GPU, but the compiled module was built without CUDA; paged_att"
    with use_kernels("all", extension=fake_module()), pytest.warns(UserWarning, match=expected):
        assert run(GPU) is None


def test_arguments_that_a_named_kernel_does_not_take_are_an_error():
    with (
        use_kernels(KERNEL, extension=fake_module(paged_attention_portable=refuse)),
        pytest.raises(Unsupported, match="q: expected a head width of 64, got 80"),
    ):
        run()


def test_arguments_that_no_kernel_takes_run_as_torch_code_with_one_warning_per_reason():
    expected = f"{KERNEL} does not run: q: expected a head width of 64, got 80; paged_attention runs as a torch"
    module = fake_module(paged_attention_portable=refuse)
    with use_kernels("all", extension=module), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            assert run() is None
    assert [str(warning.message)[: len(expected)] for warning in caught] == [expected]


def test_the_next_kernel_of_the_op_runs_where_the_preferred_one_does_not():
    module = fake_module(paged_attention_sm90=refuse)
    with use_kernels("all", extension=module), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run() == f"{KERNEL} ran"
    with use_kernels("paged_attention/sm90", extension=module), pytest.raises(Unsupported):
        run()


def test_the_preferred_kernel_runs_first():
    module = fake_module(paged_attention_sm90=lambda word, results, stream: results.append("preferred"))
    with use_kernels("all", extension=module):
        assert run() == "paged_attention/sm90 preferred"
    with use_kernels(KERNEL, extension=module):
        assert run() == f"{KERNEL} ran"


def test_other_errors_of_a_kernel_pass_through():
    def fail(*_arguments) -> None:
        raise RuntimeError("cudaLaunchKernelEx: out of resources")

    module = fake_module(paged_attention_portable=fail)
    with use_kernels("all", extension=module), pytest.raises(RuntimeError, match="out of resources"):
        run()


@pytest.mark.parametrize(
    ("capability", "name"), [((8, 0), "portable"), ((9, 0), "sm90"), ((12, 0), "portable"), ((7, 5), None)]
)
def test_a_gpu_runs_the_kernels_that_are_compiled_for_it(hopper, monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    module = fake_module(cuda=True, paged_attention_sm90=write)
    with use_kernels("all", extension=module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(GPU) == (name and f"paged_attention/{name} ran")


def test_a_launch_goes_to_the_gpu_and_the_stream_of_its_tensors(monkeypatch):
    """The current GPU does not count, and the stream is the current one of the tensors' GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    streams = [types.SimpleNamespace(device_index=gpu, cuda_stream=70 + gpu) for gpu in range(2)]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[device.index])
    launched = []
    module = fake_module(cuda=True, paged_attention_portable=lambda word, results, stream: launched.append(stream))
    with use_kernels("all", extension=module):
        run(torch.device("cuda", 1))
        run(torch.device("cuda", 0))
    assert launched == [(1, 71), (0, 70)]


def test_the_table_is_the_rule_for_dtypes_and_widths():
    kernel = KERNELS[KERNEL]
    assert kernel.refusal(torch.bfloat16, 64) is None and kernel.refusal(torch.bfloat16, 56) is None
    assert kernel.refusal(torch.float32, 64) == f"{KERNEL} takes bfloat16 and float16, not torch.float32"
    assert kernel.refusal(torch.float16, 80) == f"{KERNEL} takes heads of width 56, 64 and 128, not 80"
    hopper = "paged_attention/sm90"
    assert KERNELS[hopper].refusal(torch.float16, 56) == f"{hopper} takes heads of width 64 and 128, not 56"
    assert KERNELS["philox_normal/portable"].refusal(torch.float32, 7) is None
    for name, each in KERNELS.items():
        assert (each.name, each.function) == (name, name.replace("/", "_")) and each.dtypes


SWITCHED_OFF = "kernels are switched off"
OFF = "no GPU has verified it; AAPT_KERNELS=all runs it all the same"


@pytest.mark.parametrize(
    ("names", "kernel", "expected"),
    [
        (("auto",), KERNEL, OFF),
        (("all",), KERNEL, None),
        ((KERNEL,), KERNEL, None),
        (("none",), KERNEL, SWITCHED_OFF),
        (("kv_write/portable",), KERNEL, "the choice is kv_write/portable"),
        (("all",), "kv_write/portable", "the compiled module does not have it"),
    ],
)
def test_a_kernel_that_is_off_has_a_reason(names, kernel, expected):
    selected = Selection(names, fake_module())
    assert obstacle(KERNELS[kernel], CPU, selected) == expected


def test_the_reason_on_a_gpu_names_its_capability(hopper, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    module = fake_module(cuda=True, paged_attention_sm90=write)
    found = obstacle(KERNELS["paged_attention/sm90"], GPU, Selection(("auto",), module))
    assert found == "compiled for sm_90a, this GPU has 8.9"


# ---- the record of `aapt-fast verify` ----

IDENTITY = Identity("NVIDIA H200", "9.0", "580.65.06", "a build")


@pytest.fixture
def cache(hopper, monkeypatch, tmp_path):
    """An empty cache folder, and a GPU that the module of these tests has been built for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: IDENTITY.gpu)
    monkeypatch.setattr(record, "driver_version", lambda: IDENTITY.driver)
    monkeypatch.setattr(record, "fingerprint", lambda module: IDENTITY.build)
    forget_record()
    kernels._warn_once.cache_clear()
    yield record.path_of(IDENTITY.gpu, IDENTITY.capability)
    forget_record()


def both_variants() -> types.ModuleType:
    def preferred(word, results, stream) -> None:
        results.append("preferred")

    return fake_module(cuda=True, paged_attention_sm90=preferred)


def test_auto_runs_exactly_the_kernels_that_the_record_has_found_right_and_fast(cache):
    module = both_variants()
    wrong, slow = Verified("output 0 is wrong"), Verified(None, {"x": 0.5})
    record.add(IDENTITY, {"paged_attention/sm90": wrong, KERNEL: Verified(None, {"x": 1.5})})
    with use_kernels("auto", extension=module):
        assert run(GPU) == f"{KERNEL} ran"
        record.add(IDENTITY, {KERNEL: slow})
        forget_record()
        assert run(GPU) is None
        found = [obstacle(KERNELS[name], GPU, selection()) for name in ("paged_attention/sm90", KERNEL)]
    assert found[0] == "it failed on this GPU: output 0 is wrong" and "2.00 times as long as torch" in found[1]
    with use_kernels("all", extension=module):
        assert run(GPU) == "paged_attention/sm90 preferred"


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [((1.2, 1.5), f"{KERNEL} ran"), ((1.6, 1.5), "paged_attention/sm90 preferred")],
)
def test_the_fastest_variant_runs_first(speeds, expected, cache):
    names = ("paged_attention/sm90", KERNEL)
    record.add(IDENTITY, {name: Verified(None, {"x": speed}) for name, speed in zip(names, speeds, strict=True)})
    with use_kernels("auto", extension=both_variants()):
        assert run(GPU) == expected


def test_a_kernel_that_is_named_runs_before_those_of_the_record(cache):
    record.add(IDENTITY, {"paged_attention/sm90": Verified(None, {"x": 9.0})})
    with use_kernels("auto", KERNEL, extension=both_variants()):
        assert run(GPU) == f"{KERNEL} ran"


def test_without_a_record_one_line_says_what_to_type(cache):
    module = fake_module(cuda=True, kv_write_portable=write)
    with use_kernels("auto", extension=module), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for op in ("paged_attention", "kv_write", "paged_attention"):
            assert running_kernel(op, GPU) is None
    (line,) = (str(warning.message) for warning in caught)
    assert line.startswith("aapt_fast: there is no record of this NVIDIA H200 (") and "`aapt-fast verify`" in line


def test_a_damaged_record_costs_one_line_and_no_kernel_runs(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("{")
    with use_kernels("auto", extension=both_variants()), pytest.warns(UserWarning, match=f"the record {cache} is dama"):
        assert run(GPU) is None


def test_a_record_is_read_once_and_never_for_the_cpu(cache, monkeypatch):
    record.add(IDENTITY, {KERNEL: Verified(None, {"x": 1.5})})
    reads = []
    monkeypatch.setattr(record, "read", lambda *arguments, read=record.read: reads.append(1) or read(*arguments))
    with use_kernels("auto", extension=both_variants()):
        assert run(CPU) is None and reads == []
        for _ in range(3):
            assert run(GPU) == f"{KERNEL} ran"
        assert running_kernel("kv_write", GPU) is None
    assert reads == [1]


def test_no_record_is_looked_for_where_no_kernel_can_run(cache, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for module in (both_variants(), fake_module(cuda=False)):
        with use_kernels("auto", extension=module), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert record_for(GPU, selection()) is None and run(GPU) is None


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
        use_kernels(*names)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "('auto',)"), ("none", "('none',)"), (f"auto,{KERNEL}", f"('auto', '{KERNEL}')")],
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
    codes = getattr(extension(), "dtypes", None)
    if codes is None:
        pytest.skip("this build of aapt_fast has no kernels")
    assert codes == {str(dtype).removeprefix("torch."): code for dtype, code in kernels.DTYPE_CODES.items()}
