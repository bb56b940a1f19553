# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from aapt_fast.compat import wan
from aapt_fast.testing.attention import random_qkv, rows_of_attention
from aapt_fast.testing.compare import assert_near

FUNCTIONS = {"flash_attention": "version", "attention": "fa_version"}
BOTH = pytest.mark.parametrize("name", FUNCTIONS)
PARAMETERS = [
    *("q", "k", "v", "q_lens", "k_lens", "dropout_p", "softmax_scale", "q_scale"),
    *("causal", "window_size", "deterministic", "dtype"),
]


@BOTH
def test_signature(name):
    parameters = inspect.signature(getattr(wan, name)).parameters
    assert list(parameters) == [*PARAMETERS, FUNCTIONS[name]]
    defaults = [parameter.default for parameter in list(parameters.values())[3:]]
    assert defaults == [None, None, 0.0, None, None, False, (-1, -1), False, torch.bfloat16, None]


@BOTH
@pytest.mark.parametrize("keys", [1, 64, 77, 128])
def test_equals_the_softmax(name, keys):
    attend = partial(getattr(wan, name), dtype=torch.float32)
    q, k, v = random_qkv(2, 9, keys)
    assert_near(attend(q, k, v), rows_of_attention(q, k, v)[0], 1e-5)
    assert_near(attend(q, k, v, q_scale=0.5), rows_of_attention(0.5 * q, k, v)[0], 1e-5)
    assert_near(attend(q, k, v, softmax_scale=0.1), rows_of_attention(q, k, v, scale=0.1)[0], 1e-5)
    lengths = [keys, (keys + 1) // 2]
    for k_lens in (torch.tensor(lengths), torch.tensor(lengths, dtype=torch.int32)):
        out = attend(q, k, v, q_lens=torch.tensor([9, 4]), k_lens=k_lens)
        expected, _ = rows_of_attention(q, k, v, lengths)
        expected[1, 4:] = 0
        assert_near(out, expected, 1e-5)


@BOTH
def test_wide_inputs_are_computed_in_half_precision_and_come_back_wide(name):
    attend = getattr(wan, name)
    q, k, v = random_qkv(2, 9, 70)
    out = attend(q, k, v)
    assert out.dtype == torch.float32 and torch.equal(out, out.bfloat16().float())
    assert_near(out, rows_of_attention(q, k, v)[0], 2e-2)
    assert attend(q, k, v, dtype=torch.float16).dtype == torch.float32
    halves = [x.half() for x in (q, k, v)]
    assert torch.equal(attend(*halves), attend(*halves, dtype=torch.float16, **{FUNCTIONS[name]: 3}))
    assert attend(q.bfloat16(), k, v).dtype == torch.bfloat16


@BOTH
@pytest.mark.parametrize(
    ("argument", "value"),
    [("dropout_p", 0.1), ("causal", True), ("window_size", (4, 4)), ("dtype", torch.int8), ("deterministic", "no")],
)
def test_other_values_are_refused_by_name(name, argument, value):
    with pytest.raises(NotImplementedError, match=rf"^{name}: only {argument}=.* supported, got "):
        getattr(wan, name)(*random_qkv(1, 3, 5), **{argument: value})


@BOTH
def test_bad_arguments(name):
    q, k, v = random_qkv(2, 9, 70)
    attend = getattr(wan, name)
    with pytest.raises(NotImplementedError, match=f"only {FUNCTIONS[name]}=None"):
        attend(q, k, v, **{FUNCTIONS[name]: 4})
    with pytest.raises(ValueError, match=r"lengths: expected 0\.\.70"):
        attend(q, k, v, k_lens=torch.tensor([71, 3]))
    with pytest.raises(ValueError, match="q_lens: expected shape"):
        attend(q, k, v, q_lens=torch.tensor([3]))


@pytest.fixture
def family(monkeypatch) -> dict[str, ModuleType]:
    """Modules as in the originals: one defines the functions, another has imported one by name, a third has none."""
    names = ("family", "family.modules.attention", "family.modules.model", "family.text", "familys")
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    home = modules["family.modules.attention"]
    home.attention, home.flash_attention = (lambda q, k, v: None), (lambda q, k, v: None)
    for name in ("family.modules.model", "familys"):
        modules[name].flash_attention = home.flash_attention
    return modules


def test_functions_are_replaced_where_they_are_called(family):
    model, home = family["family.modules.model"], family["family.modules.attention"]
    before = home.attention, home.flash_attention
    q, k, v = random_qkv(2, 9, 70)
    with wan.replaced_in("family", dtype=torch.float32) as places:
        assert places == [
            "family.modules.attention.flash_attention",
            "family.modules.attention.attention",
            "family.modules.model.flash_attention",
        ]
        expected = rows_of_attention(q, k, v)[0]
        for function in (model.flash_attention, home.flash_attention, home.attention):
            assert_near(function(q, k, v), expected, 1e-5)
        assert family["familys"].flash_attention is before[1], "another package"
    assert (home.attention, home.flash_attention, model.flash_attention) == (*before, before[1])
    with pytest.raises(KeyError), wan.replaced_in("family"):
        out = model.flash_attention(q, k, v)
        assert torch.equal(out, out.bfloat16().float())
        raise KeyError
    assert model.flash_attention is before[1]


@pytest.mark.parametrize("package", ["family.text", "not_imported"])
def test_packages_without_the_functions_are_refused(family, package):
    with pytest.raises(ValueError, match="package: expected an imported package with flash_attention or attention"):
        wan.replaced_in(package).__enter__()


@pytest.mark.parametrize("page", ["docs/how-to/patch-diffusers.md", "docs/reference/compatibility.md"])
def test_the_pages_about_original_code_run(page, monkeypatch):
    """With a package `wan` whose pipeline calls its attention, which none but ours can compute here."""

    def attention(q, k, v, **options):
        raise AssertionError("the original was called")

    package = ModuleType("wan")
    package.attention = attention
    monkeypatch.setitem(sys.modules, "wan", package)
    q, k, v = random_qkv(2, 9, 64)
    pipeline = SimpleNamespace(inference=lambda noise, prompts: package.attention(q, k, v))
    text = (Path(__file__).parents[2] / page).read_text()
    (block,) = (block for block in re.findall(r"```py\n(.*?)```", text, re.DOTALL) if "replaced_in" in block)
    scope = {"torch": torch, "q": q, "k": k, "v": v, "noise": None, "pipeline": pipeline}
    exec(compile(block, page, "exec"), scope)
    assert_near(scope["video"], rows_of_attention(q, k, v)[0], 1e-5)
    assert_near(scope.get("out", scope["video"]), scope["video"], 1e-5)
    assert package.attention is attention
