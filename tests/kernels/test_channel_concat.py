# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import channel_concat, reference
from aapt_fast.ops.kernels import stream_of, use_kernels, view
from aapt_fast.testing.cases import every_second, strided
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

KERNEL = "channel_concat/portable"
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
PATCHES = pytest.mark.parametrize("patch", [1, 2], ids=lambda patch: f"patch {patch}")
SCHEDULES = pytest.mark.parametrize("schedule", range(4), ids=lambda seed: f"schedule {seed}")
GRIDS = {1: (1, 1), 63: (7, 9), 65: (5, 13)}  # tokens: patches along y and x; 64 are a tile
FEATURES = (8, 13, 64, 200)  # 128 are a tile; rows of 13 are not aligned

# Channels of a frame and of the control, for each patch. With a control the weight has 184 columns: three slabs of 64,
# of which the last one is nearly full. The noised channels end in the second one, inside of a piece of 8 columns.
CHANNELS = {1: (70, 44), 2: (17, 12)}
CHANNELS_WITHOUT_CONTROL = {1: (68, 0), 2: (17, 0)}  # 136 columns

Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None, int]


def inputs(
    target, patch: int, dtype: torch.dtype, tokens: int = 65, features: int = 200, control: bool = True, batch: int = 2
) -> Arguments:
    """noised, recycled, control, weight, bias, patch; at home on the target."""
    channels, control_channels = (CHANNELS if control else CHANNELS_WITHOUT_CONTROL)[patch]
    height, width = (patch * size for size in GRIDS[tokens])
    columns = (2 * channels + control_channels) * patch**2
    random = {"device": target.device}
    return (
        torch.randn(batch, channels, height, width, **random).to(dtype),
        torch.randn(batch, channels, height, width, **random).to(dtype),
        torch.randn(batch, control_channels, height, width, **random).to(dtype) if control else None,
        torch.randn(features, columns, **random).to(dtype),
        torch.randn(features, **random).to(dtype),
        patch,
    )


def aligned_rows(weight: torch.Tensor) -> torch.Tensor:
    """The same matrix [d, K], K a multiple of 8, with NaN around it and rows that start at multiples of 16 bytes."""
    rows, columns = weight.shape
    larger = weight.new_full((rows + 2, columns + 16), torch.nan)
    return larger[1:-1, 8:-8].copy_(weight)


def plain_torch(noised, recycled, control, weight, bias, patch: int) -> torch.Tensor:
    """The composition in torch, in the dtype of the arguments: a convolution with stride `patch`."""
    joined = torch.cat([x for x in (noised, recycled, control) if x is not None], 1)
    kernel = weight.view(len(weight), joined.shape[1], patch, patch)
    return torch.nn.functional.conv2d(joined, kernel, bias, stride=patch).flatten(2).transpose(1, 2)


def wide(arguments: Arguments) -> tuple:
    return tuple(x.float() if isinstance(x, torch.Tensor) else x for x in arguments)


def assert_right(tokens: torch.Tensor, arguments: Arguments) -> None:
    """Within twice torch's own error of the reference in float32."""
    assert tokens.dtype == arguments[0].dtype and tokens.is_contiguous()
    assert_within_twice_torch(tokens, reference.channel_concat(*wide(arguments)), plain_torch(*arguments))


@DTYPES
@PATCHES
@SCHEDULES
def test_equals_reference(schedule, patch, dtype, target):
    arguments = inputs(target, patch, dtype)
    with target.kernels(KERNEL, schedule=schedule):
        tokens = channel_concat(*arguments)
    assert_right(tokens, arguments)


@DTYPES
@PATCHES
@pytest.mark.parametrize("features", FEATURES, ids=lambda features: f"d {features}")
@pytest.mark.parametrize("tokens", GRIDS, ids=lambda tokens: f"{tokens} tokens")
def test_sizes(tokens, features, patch, dtype, target):
    arguments = inputs(target, patch, dtype, tokens, features)
    with target.kernels(KERNEL, schedule=tokens + features):
        actual = channel_concat(*arguments)
    assert actual.shape == (2, tokens, features)
    assert_right(actual, arguments)


@DTYPES
@PATCHES
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_without_control_and_bias(bias, patch, dtype, target):
    noised, recycled, _, weight, offset, _ = inputs(target, patch, dtype, features=64, control=False)
    arguments = (noised, recycled, None, weight, offset if bias else None, patch)
    with target.kernels(KERNEL, schedule=1):
        tokens = channel_concat(*arguments)
    assert_right(tokens, arguments)


@DTYPES
@PATCHES
def test_strided_views(patch, dtype, target):
    arguments = inputs(target, patch, dtype)
    noised, recycled, control, weight, bias, _ = arguments
    views = (strided(noised), strided(recycled), strided(control), aligned_rows(weight), every_second(bias), patch)
    expanded = (recycled[:1].expand_as(recycled), *views[1:])
    with target.kernels(KERNEL, schedule=2):
        assert torch.equal(channel_concat(*views), channel_concat(*arguments))
        assert_right(channel_concat(*expanded), (recycled[:1].repeat(2, 1, 1, 1), *arguments[1:]))


@PATCHES
def test_a_session_alone_and_in_a_batch(patch, target):
    noised, recycled, control, weight, bias, _ = inputs(target, patch, torch.bfloat16, batch=3)
    with target.kernels(KERNEL):
        together = channel_concat(noised, recycled, control, weight, bias, patch)
        for i in range(3):
            row = slice(i, i + 1)
            alone = channel_concat(noised[row], recycled[row], control[row], weight, bias, patch)
            assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("features", [13, 200], ids=lambda features: f"d {features}")
@PATCHES
def test_writes_nothing_else(patch, features, target):
    arguments = inputs(target, patch, torch.bfloat16, features=features, batch=1)
    *tensors, _ = arguments
    memory = torch.full((3, 65 * features + 8), torch.nan, device=target.device).bfloat16()
    tokens = memory[1, 8:].view(1, 65, features)
    with target.kernels():
        target.module.channel_concat_portable(*map(view, tensors), patch, view(tokens), stream_of(target.device))
    assert memory.isfinite().sum() == tokens.numel()
    assert_right(tokens, arguments)


def test_frames_without_channels_or_pixels(target):
    control, weight, bias = (torch.randn(*size, device=target.device).half() for size in ((2, 8, 3, 3), (16, 8), (16,)))
    nothing, empty = control[:, :0], control[:, :4, :0]
    with target.kernels(KERNEL):
        tokens = channel_concat(nothing, nothing, control, weight, bias, 1)
        assert_right(tokens, (nothing, nothing, control, weight, bias, 1))
        assert channel_concat(empty, empty, None, weight, bias, 1).shape == (2, 0, 16)


UNSUPPORTED = {
    "float32": (lambda x: wide(x), "recycled: expected bfloat16 or float16 for this kernel, got float32"),
    "columns": (
        lambda x: (*x[:2], x[2][:, :11], x[3][:, :180].contiguous(), *x[4:]),
        "weight: expected a multiple of 8 columns for this kernel, got 180",
    ),
    "patch": (
        lambda x: (*(frames[..., :3, :3] for frames in x[:3]), x[3].repeat(1, 3)[:, : 46 * 9], x[4], 3),
        "patch: expected a side of 1 or 2 for this kernel, got 3",
    ),
    "rows of the weight": (
        lambda x: (*x[:3], strided(x[3]), *x[4:]),
        "weight: expected rows of adjacent elements that start at multiples of 16 bytes, got strides",
    ),
    "no features": (
        lambda x: (*x[:3], x[3][:0], x[4][:0], x[5]),
        "weight: expected at least one row for this kernel, got none",
    ),
}


@pytest.mark.parametrize(("change", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported(change, message, target):
    """A kernel chosen by name names what it does not do; otherwise the composition runs."""
    arguments = change(inputs(target, 2, torch.bfloat16))
    with target.kernels(KERNEL), pytest.raises(target.module.Unsupported, match=message):
        channel_concat(*arguments)
    assert channel_concat(*arguments).isfinite().all()


@PATCHES
@pytest.mark.parametrize("which", [0, 1, 2], ids=["noised", "recycled", "control"])
def test_any_memory_format(which, patch, target):
    """Channels last, as convolutions give it, and pixels that lie apart; each source by itself."""
    arguments = inputs(target, patch, torch.bfloat16)
    frames = arguments[which]
    with target.kernels(KERNEL):
        expected = channel_concat(*arguments)
        for view in (frames.contiguous(memory_format=torch.channels_last), every_second(frames)):
            changed = [*arguments[:which], view, *arguments[which + 1 :]]
            assert not view.is_contiguous()
            assert torch.equal(channel_concat(*changed), expected)


BAD_ARGUMENTS = {
    "noised": ({"noised": torch.ones(2, 17, 10, 24).half()}, r"noised: expected shape \[2, 17, 10, 26\], got"),
    "noised dtype": ({"noised": torch.ones(2, 17, 10, 26)}, "noised: expected float16, got float32"),
    "control": (
        {"control": torch.ones(1, 12, 10, 26).half()},
        r"control: expected shape \[2, any, 10, 26\], got",
    ),
    "control dtype": ({"control": torch.ones(2, 12, 10, 26).bfloat16()}, "control: expected float16, got bfloat16"),
    "no control": ({"control": None}, r"weight: expected shape \[any, 136\], got \[200, 184\]"),
    "weight dtype": ({"weight": torch.ones(200, 184)}, "weight: expected float16, got float32"),
    "bias": ({"bias": torch.ones(199).half()}, r"bias: expected shape \[200\], got \[199\]"),
    "bias dtype": ({"bias": torch.ones(200)}, "bias: expected float16, got float32"),
    "patch": ({"patch": 3}, "patch: expected a divisor of 10 and 26, got 3"),
    "patch zero": ({"patch": 0}, "patch: expected a divisor of 10 and 26, got 0"),
    "tokens": ({"tokens": torch.ones(2, 64, 200).half()}, r"tokens: expected shape \[2, 65, 200\], got"),
    "tokens dtype": ({"tokens": torch.ones(2, 65, 200)}, "tokens: expected float16, got float32"),
    "tokens strides": ({"tokens": torch.ones(65, 2, 200).half().transpose(0, 1)}, "tokens: expected a contiguous"),
}


@pytest.mark.parametrize(("change", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(change, message, target):
    """The compiled function checks for itself; the op checks its arguments before."""
    names = ("noised", "recycled", "control", "weight", "bias", "patch")
    good = dict(zip(names, inputs(target, 2, torch.float16), strict=True))
    good["tokens"] = torch.empty(2, 65, 200).half()
    given = {name: x if isinstance(x, int) else view(x) for name, x in {**good, **change}.items()}
    with pytest.raises(ValueError, match=message):
        target.module.channel_concat_portable(**given, stream=(0, 0))


@DTYPES
@PATCHES
def test_gradients(patch, dtype, target):
    """The backward is that of the composition, whatever made the tokens."""
    *tensors, _ = inputs(target, patch, dtype)
    for tensor in tensors:
        tensor.requires_grad_()
    with target.kernels(KERNEL):
        tokens = channel_concat(*tensors, patch)
    with use_kernels("none"):
        expected = channel_concat(*tensors, patch)
    assert_right(tokens, (*(x.detach() for x in tensors), patch))
    direction = torch.randn_like(tokens)
    for one, other in zip(*(torch.autograd.grad(x, tensors, direction) for x in (tokens, expected)), strict=True):
        assert torch.equal(one, other)


@DTYPES
def test_autocast_casts_first(dtype, target):
    noised, recycled, control, weight, bias, patch = wide(inputs(target, 2, dtype))
    weight.requires_grad_()
    with target.kernels(KERNEL), torch.autocast(target.device.type, dtype):
        tokens = channel_concat(noised.to(dtype), recycled, control, weight, bias, patch)
    cast = (x.detach().to(dtype) for x in (noised, recycled, control, weight, bias))
    assert_right(tokens, (*cast, patch))
    tokens.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_opcheck(target):
    with target.kernels(KERNEL):
        torch.library.opcheck(torch.ops.aapt.channel_concat.default, inputs(target, 2, torch.bfloat16, 1, features=16))


def test_compile(target):
    arguments = inputs(target, 2, torch.bfloat16)
    arguments[3].requires_grad_()
    compiled = torch.compile(channel_concat, fullgraph=True, backend="aot_eager")
    with target.kernels(KERNEL):
        tokens, expected = compiled(*arguments), channel_concat(*arguments)
    assert torch.equal(tokens, expected)
    gradients = (torch.autograd.grad(x.float().square().sum(), arguments[3])[0] for x in (tokens, expected))
    assert_near(*gradients, 1e-2)
