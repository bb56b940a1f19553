# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pixel_shuffle

from aapt_fast.ops import channel_concat, clean_frame, reference
from aapt_fast.testing.cases import DEVICES, every_second, strided
from aapt_fast.testing.compare import assert_near

BATCH, CHANNELS, FRAMES = 2, 4, 3
GRID = (3, 5)  # patches
PATCHES = (1, 2, 3)
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(patch: int = 2, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> Inputs:
    """tokens, noised, t."""
    tokens = torch.randn(BATCH, FRAMES * GRID[0] * GRID[1], CHANNELS * patch**2, dtype=dtype)
    noised = torch.randn(BATCH, CHANNELS, FRAMES, GRID[0] * patch, GRID[1] * patch, dtype=dtype)
    return tuple(x.requires_grad_(requires_grad) for x in (tokens, noised, torch.rand(BATCH, dtype=dtype)))


def plain(tokens: torch.Tensor, noised: torch.Tensor, t: torch.Tensor, patch: int) -> torch.Tensor:
    """As the generator did it before there was an op: operators of torch, each through memory."""
    batch, _, frames, height, width = noised.shape
    patches = tokens.reshape(batch * frames, height // patch, width // patch, -1).permute(0, 3, 1, 2)
    velocity = pixel_shuffle(patches, patch).float().unflatten(0, (batch, frames)).transpose(1, 2)
    return noised - t.view(-1, 1, 1, 1, 1) * velocity


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("patch", PATCHES)
def test_equals_reference(patch, device):
    arguments = [x.to(device) for x in inputs(patch)]
    clean = clean_frame(*arguments, patch)
    expected = reference.clean_frame(*(x.double() for x in arguments), patch)
    assert_near(clean, expected, 1e-6)
    assert clean.dtype == torch.float32 and clean.is_contiguous()


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_tokens_are_rounded_by_nobody_but_their_maker(dtype, patch):
    tokens, noised, t = inputs(patch)
    tokens = tokens.to(dtype)
    clean = clean_frame(tokens, noised, t, patch)
    assert torch.equal(clean, plain(tokens, noised, t, patch))
    assert_near(clean, reference.clean_frame(tokens.double(), noised.double(), t.double(), patch), 1e-6)


@pytest.mark.parametrize("patch", PATCHES)
def test_tokens_are_ordered_as_those_of_the_patch_embedding(patch):
    """A patch embedding that changes nothing makes the tokens; at t = 1 they are taken off again."""
    _, noised, t = inputs(patch)
    frames = noised.transpose(1, 2).flatten(0, 1)
    features = CHANNELS * patch**2
    keep_noised = torch.cat([torch.eye(features), torch.zeros(features, features)], 1)
    tokens = channel_concat(frames, torch.zeros_like(frames), None, keep_noised, None, patch)
    clean = clean_frame(tokens.unflatten(0, (BATCH, FRAMES)).flatten(1, 2), noised, torch.ones_like(t), patch)
    assert not clean.any()


@pytest.mark.parametrize("view", [strided, every_second])
def test_strided_inputs(view):
    arguments = inputs()
    clean = clean_frame(*(view(x) for x in arguments), 2)
    assert torch.equal(clean, clean_frame(*arguments, 2)) and clean.is_contiguous()


def test_frames_first_and_one_timestep_for_all_rows():
    """As a session has them: frames beside each other in memory, t expanded."""
    tokens, noised, _ = inputs()
    t = torch.tensor([0.75]).expand(BATCH)
    frames_first = noised.transpose(1, 2).contiguous().transpose(1, 2)
    clean = clean_frame(tokens, frames_first, t, 2)
    assert torch.equal(clean, clean_frame(tokens, noised, t.contiguous(), 2)) and clean.is_contiguous()


@pytest.mark.parametrize("patch", PATCHES)
def test_gradients(patch):
    arguments = inputs(patch, torch.float64, requires_grad=True)
    share = torch.randn_like(arguments[1])
    actual = torch.autograd.grad((clean_frame(*arguments, patch) * share).sum(), arguments)
    expected = torch.autograd.grad((reference.clean_frame(*arguments, patch) * share).sum(), arguments)
    for gradient, wanted in zip(actual, expected, strict=True):
        assert_near(gradient, wanted, 1e-12)


@pytest.mark.parametrize("needed", range(3), ids=["tokens", "noised", "t"])
def test_gradcheck(needed):
    """Of one frame, as every element is moved twice."""
    tokens, noised, t = inputs(dtype=torch.float64)
    one_frame = (tokens[:, : GRID[0] * GRID[1]], noised[:, :, :1], t)
    arguments = [x.requires_grad_(i == needed) for i, x in enumerate(one_frame)]
    assert torch.autograd.gradcheck(clean_frame, (*arguments, 2))


def test_gradgradcheck():
    arguments = inputs(dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(clean_frame, (*arguments, 2), fast_mode=True)


def test_gradients_have_the_dtype_of_their_argument():
    tokens, noised, t = inputs()
    arguments = [x.requires_grad_() for x in (tokens.bfloat16(), noised, t)]
    clean_frame(*arguments, 2).square().sum().backward()
    assert [x.grad.dtype for x in arguments] == [x.dtype for x in arguments]


@pytest.mark.parametrize("shape", [(0, 4, 3, 6, 10), (2, 0, 3, 6, 10), (2, 4, 0, 6, 10), (2, 4, 3, 0, 10)], ids=str)
def test_nothing_to_do(shape):
    batch, channels, frames, height, width = shape
    tokens = torch.empty(batch, frames * (height // 2) * (width // 2), 4 * channels)
    assert clean_frame(tokens, torch.empty(shape), torch.ones(batch), 2).shape == shape


def test_autocast_changes_nothing():
    tokens, noised, t = inputs()
    expected = clean_frame(tokens.bfloat16(), noised, t, 2)
    with torch.autocast("cpu", torch.bfloat16):
        clean = clean_frame(tokens.bfloat16(), noised, t, 2)
    assert clean.dtype == torch.float32 and torch.equal(clean, expected)


def test_opcheck():
    torch.library.opcheck(torch.ops.aapt.clean_frame.default, (*inputs(requires_grad=True), 2))
    tokens, noised, t = inputs(patch=3)
    torch.library.opcheck(torch.ops.aapt.clean_frame.default, (tokens.bfloat16(), strided(noised), t, 3))


def test_compiles_with_inductor_forward_and_backward():
    arguments = inputs(requires_grad=True)

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        return clean_frame(*arguments, 2).square().sum()

    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*arguments), arguments)
    for gradient, expected in zip(actual, torch.autograd.grad(loss(*arguments), arguments), strict=True):
        assert_near(gradient, expected, 1e-5)


def test_compiled_for_a_cpu_it_is_fused():
    """No call of the op is left for the compiler to go around, and the result is the op's, under autocast too."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    tokens, noised, t = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = torch.compile(clean_frame, backend=keep, fullgraph=True)(tokens.bfloat16(), noised, t, 2)
        expected = clean_frame(tokens.bfloat16(), noised, t, 2)
    assert len(graphs) == 1 and "aapt" not in graphs[0].code
    assert torch.equal(compiled, expected) and compiled.stride() == expected.stride()


TOKENS, NOISED, T = inputs()
BAD_INPUTS = {
    "noised dimensions": ({"noised": NOISED[0]}, r"noised: expected shape \[B, C, F, h, w\], got \[4, 3, 6, 10\]"),
    "noised dtype": (
        {"noised": NOISED.half()},
        r"noised: expected torch\.float32 or .*, got torch\.float16",
    ),
    "patch": ({"patch": 4}, "patch: expected a divisor of 6 and 10, got 4"),
    "patch of nothing": ({"patch": 0}, "patch: expected a divisor of 6 and 10, got 0"),
    "tokens shape": ({"tokens": TOKENS[:, 1:]}, r"tokens: expected shape \[2, 45, 16\], got \[2, 44, 16\]"),
    "tokens of another patch": ({"patch": 1}, r"tokens: expected shape \[2, 180, 4\], got \[2, 45, 16\]"),
    "tokens dtype": ({"tokens": TOKENS.int()}, r"tokens: expected a floating point dtype, got torch\.int32"),
    "tokens device": ({"tokens": TOKENS.to("meta")}, "tokens: expected a tensor on cpu, got one on meta"),
    "t shape": ({"t": T[:1]}, r"t: expected shape \[2\], got \[1\]"),
    "t dtype": ({"t": T.double()}, r"t: expected torch\.float32, got torch\.float64"),
    "t device": ({"t": T.to("meta")}, "t: expected a tensor on cpu, got one on meta"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(change, message):
    good = {"tokens": TOKENS, "noised": NOISED, "t": T, "patch": 2}
    with pytest.raises(ValueError, match=message):
        clean_frame(**{**good, **change})
