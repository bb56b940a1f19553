# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.functional import pixel_shuffle

from aapt_fast.ops import clean_frame, reference
from aapt_fast.ops.kernels import use_kernels, view
from aapt_fast.testing.cases import every_second, padded_rows, strided
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
PATCH_SIDES = pytest.mark.parametrize("patch", [1, 2])
SCHEDULES = pytest.mark.parametrize("schedule", range(4), ids=lambda seed: f"schedule {seed}")
KERNEL = "clean_frame/portable"
# Height and width in patches. Rows of pixels that are and that are not whole vectors, for both sides of a patch.
GRIDS = [(1, 1), (1, 4), (2, 2), (3, 3), (2, 5), (5, 6), (4, 7), (7, 12), (1, 33)]
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_inputs(
    target,
    dtype: torch.dtype = torch.bfloat16,
    *,
    patch: int = 2,
    batch: int = 2,
    channels: int = 16,
    frames: int = 3,
    grid: tuple[int, int] = (3, 4),
) -> Inputs:
    """Random tokens, noised and t."""
    tokens = torch.randn(batch, frames * grid[0] * grid[1], channels * patch**2).to(target.device, dtype)
    noised = torch.randn(batch, channels, frames, grid[0] * patch, grid[1] * patch, device=target.device)
    return tokens, noised, torch.rand(batch, device=target.device)


def plain_torch(tokens: torch.Tensor, noised: torch.Tensor, t: torch.Tensor, patch: int) -> torch.Tensor:
    """The composition in torch -> [B, C, F, h, w]."""
    batch, channels, frames, height, width = noised.shape
    grid = (height // patch, width // patch, channels * patch**2)
    patches = tokens.reshape(batch * frames, *grid).permute(0, 3, 1, 2)
    velocity = pixel_shuffle(patches, patch).float().unflatten(0, (batch, frames)).transpose(1, 2)
    return noised - t.view(-1, 1, 1, 1, 1) * velocity


def check(inputs: Inputs, patch: int, target, schedule: int = 0) -> torch.Tensor:
    """The result of the kernel is within twice torch's own error of the reference in float64."""
    with target.kernels(KERNEL, schedule=schedule):
        clean = clean_frame(*inputs, patch)
    assert clean.dtype == torch.float32 and clean.is_contiguous()
    oracle = reference.clean_frame(*(x.double() for x in inputs), patch)
    assert_within_twice_torch(clean, oracle, plain_torch(*inputs, patch))
    return clean


# ---- the maths ----


@DTYPES
@PATCH_SIDES
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
@pytest.mark.usefixtures("poisoned_memory")
def test_grids(grid, patch, dtype, target):
    check(make_inputs(target, dtype, patch=patch, grid=grid), patch, target, schedule=grid[1] % 4)


@DTYPES
@PATCH_SIDES
@pytest.mark.parametrize("channels", [8, 16, 24, 48])
@pytest.mark.usefixtures("poisoned_memory")
def test_channels(channels, patch, dtype, target):
    check(make_inputs(target, dtype, patch=patch, channels=channels, grid=(2, 6)), patch, target, schedule=1)


@DTYPES
@PATCH_SIDES
@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 4), (3, 1), (3, 2)])
@pytest.mark.usefixtures("poisoned_memory")
def test_rows_and_frames(batch, frames, patch, dtype, target):
    inputs = make_inputs(target, dtype, patch=patch, batch=batch, frames=frames)
    check(inputs, patch, target, schedule=2)


@PATCH_SIDES
@SCHEDULES
@pytest.mark.parametrize("width", [8, 9], ids=["whole vectors", "single pixels"])
@pytest.mark.usefixtures("poisoned_memory")
def test_every_schedule(width, schedule, patch, target):
    check(make_inputs(target, patch=patch, grid=(5, width)), patch, target, schedule)


@PATCH_SIDES
def test_at_t_0_nothing_is_taken_off(patch, target):
    tokens, noised, t = make_inputs(target, patch=patch)
    with target.kernels(KERNEL):
        assert torch.equal(clean_frame(tokens, noised, 0 * t, patch), noised)


@DTYPES
@PATCH_SIDES
def test_where_each_number_goes(patch, dtype, target):
    """One feature of one token is one pixel, and one that is nan stays alone."""
    tokens, noised, t = make_inputs(target, dtype, patch=patch)
    tokens[1, 17, 3 * patch**2 + patch**2 - 1] = torch.nan  # frame 1, patch (1, 1), the last pixel of channel 3
    with target.kernels(KERNEL):
        clean = clean_frame(tokens, noised, t, patch)
    assert clean.isnan().nonzero().tolist() == [[1, 3, 1, 2 * patch - 1, 2 * patch - 1]]


@pytest.mark.parametrize("shape", [(0, 16, 3, 6, 8), (2, 0, 3, 6, 8), (2, 16, 0, 6, 8), (2, 16, 3, 0, 8)], ids=str)
def test_nothing_to_do(shape, target):
    batch, channels, frames, height, width = shape
    tokens = torch.empty(batch, frames * (height // 2) * (width // 2), 4 * channels, dtype=torch.bfloat16)
    with target.kernels(KERNEL):
        rest = (torch.empty(shape, device=target.device), torch.ones(batch, device=target.device))
        assert clean_frame(tokens.to(target.device), *rest, 2).shape == shape


def test_the_kernel_is_what_runs(target, monkeypatch):
    calls, compiled = [], target.module.clean_frame_portable
    monkeypatch.setattr(target.module, "clean_frame_portable", lambda *a: (calls.append(a), compiled(*a)))
    check(make_inputs(target), 2, target)
    assert len(calls) == 1


# ---- views ----


@DTYPES
@PATCH_SIDES
@pytest.mark.parametrize("width", [8, 9], ids=["whole vectors", "single pixels"])
@pytest.mark.parametrize("other", [padded_rows, strided, every_second], ids=lambda function: function.__name__)
def test_views(other, width, patch, dtype, target):
    """The kernel takes padded rows of tokens, and any view of frames and timesteps."""
    tokens, noised, t = make_inputs(target, dtype, patch=patch, grid=(2, width))
    check((padded_rows(tokens), other(noised), every_second(t)), patch, target)


@pytest.mark.parametrize("first", range(4))
def test_noised_may_start_anywhere(first, target):
    """Rows that would be whole vectors, but for where they start."""
    tokens, noised, t = make_inputs(target)
    memory = torch.full((noised.numel() + 4,), torch.nan, device=target.device)
    moved = memory[first : first + noised.numel()].view(noised.shape).copy_(noised)
    check((tokens, moved, t), 2, target)


def test_noised_may_go_on_anywhere(target):
    """The first row is a whole number of vectors, the others start between two."""
    tokens, noised, t = make_inputs(target)
    larger = torch.nn.functional.pad(noised, (0, 1), value=torch.nan)
    check((tokens, larger[..., :-1], t), 2, target)


@PATCH_SIDES
def test_frames_first_and_one_timestep_for_all_rows(patch, target):
    tokens, noised, t = make_inputs(target, patch=patch)
    check((tokens, noised.transpose(1, 2).contiguous().transpose(1, 2), t[:1].expand(2)), patch, target)


def test_rows_may_share_memory(target):
    tokens, noised, t = make_inputs(target)
    check((tokens[:, :1].expand(tokens.shape), noised[:1, :1].expand(noised.shape), t), 2, target)


FAR = 2**31  # elements


@pytest.mark.parametrize("dimension", [0, 1], ids=["rows of the batch", "tokens"])
def test_tokens_more_than_2_to_the_31_elements_apart(dimension, target):
    tokens, noised, t = make_inputs(target, batch=2, frames=1, grid=(1, 2), channels=8)
    memory = torch.empty(FAR + 4 * 32, dtype=torch.bfloat16, device=target.device)
    far = memory.as_strided(tokens.shape, (FAR, 32, 1) if dimension == 0 else (64, FAR, 1)).copy_(tokens)
    check((far, noised, t), 2, target)


@pytest.mark.parametrize("dimension", range(4), ids=["rows of the batch", "channels", "frames", "rows of pixels"])
def test_pixels_more_than_2_to_the_31_elements_apart(dimension, target):
    tokens, noised, t = make_inputs(target, channels=2, frames=2, grid=(1, 2))  # there are two of everything
    strides = list(noised.stride())
    strides[dimension] = FAR
    memory = torch.empty(FAR + noised.numel(), device=target.device)
    check((tokens, memory.as_strided(noised.shape, strides).copy_(noised), t), 2, target)


# ---- what the kernel does not do ----

UNSUPPORTED = {
    "float64 frames": (
        lambda x: {"noised": x["noised"].double(), "t": x["t"].double()},
        "noised: expected float32 for this kernel, got another dtype",
    ),
    "float32 tokens": (lambda x: {"tokens": x["tokens"].float()}, "tokens: expected bfloat16 or float16 .* float32"),
    "a patch of 3": (
        lambda x: {"tokens": x["tokens"][:, :16].repeat(1, 1, 3)[..., :144], "patch": 3},
        "patch: expected a side of 1 or 2 for this kernel, got 3",
    ),
    "12 features": (
        lambda x: {"tokens": x["tokens"][..., :12], "noised": x["noised"][:, :3]},
        "tokens: expected a multiple of 8 features for this kernel, got 12",
    ),
    "every second feature": (
        lambda x: {"tokens": every_second(x["tokens"])},
        "tokens: expected rows of adjacent elements",
    ),
    "tokens in odd places": (
        lambda x: {"tokens": strided(x["tokens"])},
        "tokens: expected rows .* multiples of 16 bytes",
    ),
    "65536 frames": (
        lambda x: {
            "tokens": x["tokens"][:1, :1, :32].expand(1, 65536, 32),
            "noised": x["noised"][:1, :8, :1, :2, :2].expand(1, 8, 65536, 2, 2),
            "t": x["t"][:1],
        },
        "noised: expected at most 65535 frames of all rows for this kernel, got 65536",
    ),
}


def named(inputs: Inputs, patch: int = 2) -> dict[str, torch.Tensor | int]:
    return {**dict(zip(("tokens", "noised", "t"), inputs, strict=True)), "patch": patch}


@pytest.mark.parametrize(("change", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_arguments_are_refused(change, message, target):
    good = named(make_inputs(target, frames=2, grid=(3, 6)))
    with target.kernels(KERNEL), pytest.raises(target.module.Unsupported, match=message):
        clean_frame(**{**good, **change(good)})


def test_a_kernel_that_is_not_named_leaves_these_to_the_composition(target):
    tokens, noised, t = make_inputs(target)
    expected = clean_frame(tokens.float(), noised, t, 2)
    with use_kernels("all", extension=target.module):
        with pytest.warns(UserWarning, match="clean_frame/portable does not run: tokens: expected bfloat16 or"):
            clean = clean_frame(tokens.float(), noised, t, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check((tokens, noised, t), 2, target)
    assert torch.equal(clean, expected)


BAD = {
    "dimensions": (lambda x: {"noised": x["noised"][0]}, r"noised: expected shape \[any, any, any, any, any\], got"),
    "patch": (lambda x: {"patch": 4}, "patch: expected a divisor of 6 and 8, got 4"),
    "no patch": (lambda x: {"patch": 0}, "patch: expected a divisor of 6 and 8, got 0"),
    "tokens": (lambda x: {"tokens": x["tokens"][:, 1:]}, r"tokens: expected shape \[2, 36, 64\], got \[2, 35, 64\]"),
    "t shape": (lambda x: {"t": x["t"][:1]}, r"t: expected shape \[2\], got \[1\]"),
    "t dtype": (lambda x: {"t": x["t"].half()}, "t: expected float32, got float16"),
    "clean shape": (lambda x: {"clean": x["noised"][:, :, :1]}, r"clean: expected shape \[2, 16, 3, 6, 8\], got"),
    "clean dtype": (lambda x: {"clean": x["noised"].half()}, "clean: expected float32, got float16"),
    "clean strides": (lambda x: {"clean": padded_rows(x["noised"])}, "clean: expected a contiguous tensor"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_the_compiled_function_checks_for_itself(change, message, target):
    good = named(make_inputs(target))
    clean = torch.zeros_like(good["noised"])
    stream = (0, 0) if target.device.type == "cpu" else (target.device.index, 0)
    with pytest.raises(ValueError, match=message):
        given = {**good, "clean": clean, **change(good)}.values()
        target.module.clean_frame_portable(*(view(x) if isinstance(x, torch.Tensor) else x for x in given), stream)
    assert not clean.any()


# ---- as a torch op ----


@DTYPES
@PATCH_SIDES
def test_gradients_are_those_of_the_composition(patch, dtype, target):
    inputs = [x.requires_grad_() for x in make_inputs(target, dtype, patch=patch)]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(clean_frame(*inputs, patch).square().mean(), inputs)

    expected = gradients()
    with target.kernels(KERNEL):
        actual = gradients()
    for gradient, wanted in zip(actual, expected, strict=True):
        assert gradient.dtype == wanted.dtype and wanted.any()
        assert_near(gradient.float() / wanted.abs().max().float(), wanted.float() / wanted.abs().max().float(), 0.01)


def test_under_autocast_it_runs(target):
    """As a session in half precision calls it: the tokens come from a linear map in that dtype."""
    tokens, noised, t = make_inputs(target)
    weight = torch.eye(tokens.shape[-1], device=target.device)
    with torch.autocast(target.device.type, torch.bfloat16), target.kernels(KERNEL):
        clean = clean_frame(torch.nn.functional.linear(tokens.float(), weight), noised, t, 2)
    assert torch.equal(clean, check((tokens, noised, t), 2, target))


def test_opcheck(target):
    with target.kernels(KERNEL):
        torch.library.opcheck(torch.ops.aapt.clean_frame.default, (*make_inputs(target), 2))


def test_compiles_forward_and_backward(target):
    inputs = [x.requires_grad_() for x in make_inputs(target)]

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        return clean_frame(*arguments, 2).square().sum()

    with target.kernels(KERNEL):
        actual = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
        expected = torch.autograd.grad(loss(*inputs), inputs)
    for gradient, wanted in zip(actual, expected, strict=True):
        assert torch.equal(gradient, wanted)
