# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import channel_concat, channel_concat_noise, philox_normal, reference
from aapt_fast.ops.kernels import stream_of, use_kernels, view
from aapt_fast.testing.cases import every_second, strided
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

KERNEL, NOISE_KERNEL = "channel_concat/portable", "channel_concat_noise/portable"
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
PATCHES = pytest.mark.parametrize("patch", [1, 2], ids=lambda patch: f"patch {patch}")
SCHEDULES = pytest.mark.parametrize("schedule", range(4), ids=lambda seed: f"schedule {seed}")
GRIDS = {1: (1, 1), 63: (7, 9), 65: (5, 13)}  # tokens: patches along y and x; 64 are a tile
FEATURES = (8, 13, 64, 200)  # 128 are a tile; rows of 13 are not aligned

# Channels of a frame and of the control, for each patch. With a control the weight has 184 columns: three slabs of 64,
# of which the last one is nearly full. The noise ends in the second one, inside of a piece of 8 columns.
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
    """What a user of torch would write, in the dtype of the arguments: a convolution with stride `patch`."""
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
    with target.kernels(KERNEL, NOISE_KERNEL, schedule=2):
        assert torch.equal(channel_concat(*views), channel_concat(*arguments))
        assert_right(channel_concat(*expanded), (recycled[:1].repeat(2, 1, 1, 1), *arguments[1:]))
        keys = torch.tensor([[3, -4], [0, 2**35]], device=target.device)
        actual = channel_concat_noise(*views[1:], *strided(keys))
        for one, other in zip(actual, channel_concat_noise(*arguments[1:], *keys), strict=True):
            assert torch.equal(one, other)


@DTYPES
@PATCHES
@SCHEDULES
def test_noise_is_that_of_philox_normal(schedule, patch, dtype, target):
    """In every tile of tokens and of features, for any schedule, the very same numbers as the other two kernels."""
    arguments = inputs(target, patch, dtype)
    keys = torch.tensor([[3, -(2**62)], [0, 2**35 + 1]], device=target.device)
    with target.kernels("all", schedule=schedule):
        tokens, noise = channel_concat_noise(*arguments[1:], *keys)
        assert torch.equal(noise, philox_normal(*keys, noise.shape[1:], dtype=dtype))
        assert torch.equal(tokens, channel_concat(noise, *arguments[1:]))
    assert noise.dtype == dtype and noise.is_contiguous()
    assert_right(tokens, (noise, *arguments[1:]))


@DTYPES
@PATCHES
@pytest.mark.parametrize("tokens", GRIDS, ids=lambda tokens: f"{tokens} tokens")
def test_noise_in_other_sizes(tokens, patch, dtype, target):
    arguments = inputs(target, patch, dtype, tokens, features=13, control=False)
    keys = torch.tensor([[-1, 2**63 - 1], [1, 2**40]], device=target.device)
    with target.kernels("all"):
        actual, noise = channel_concat_noise(*arguments[1:], *keys)
        assert torch.equal(noise, philox_normal(*keys, noise.shape[1:], dtype=dtype))
    assert_right(actual, (noise, *arguments[1:]))


@PATCHES
def test_blocks_that_make_several_tiles_of_features(patch, target):
    """Above 256 tiles of 64 tokens and 128 features, here 264, a block makes two of one set of noise."""
    arguments = inputs(target, patch, torch.bfloat16, features=264, control=False, batch=44)
    keys = torch.arange(88, device=target.device).view(2, 44)
    with target.kernels(NOISE_KERNEL, schedule=1):
        tokens, noise = channel_concat_noise(*arguments[1:], *keys)
        last = channel_concat_noise(arguments[1][-1:], None, *arguments[3:], *keys[:, -1:])
    assert torch.equal(last[0][0], tokens[-1]) and torch.equal(last[1][0], noise[-1])
    with target.kernels("philox_normal/portable"):
        assert torch.equal(noise, philox_normal(*keys, noise.shape[1:], dtype=noise.dtype))
    assert_right(tokens, (noise, *arguments[1:]))


@PATCHES
def test_a_session_alone_and_in_a_batch(patch, target):
    _, recycled, control, weight, bias, _ = inputs(target, patch, torch.bfloat16, batch=3)
    seeds, steps = torch.tensor([[5, 5, -3], [0, 9, 2**33]], device=target.device)
    with target.kernels(NOISE_KERNEL):
        together = channel_concat_noise(recycled, control, weight, bias, patch, seeds, steps)
        for i in range(3):
            row = slice(i, i + 1)
            alone = channel_concat_noise(recycled[row], control[row], weight, bias, patch, seeds[row], steps[row])
            assert all(torch.equal(one[0], several[i]) for one, several in zip(alone, together, strict=True))
    assert not torch.equal(together[1][0], together[1][1])


@pytest.mark.parametrize("features", [13, 200], ids=lambda features: f"d {features}")
@PATCHES
def test_writes_nothing_else(patch, features, target):
    arguments = inputs(target, patch, torch.bfloat16, features=features, batch=1)
    noised, *others, _ = arguments
    keys = torch.tensor([[1], [2]], device=target.device)
    memory = torch.full((4, 65 * max(features, noised[0].numel())), torch.nan, device=target.device).bfloat16()
    tokens = memory[1, : 65 * features].view(1, 65, features)
    noise = memory[3, 8 : 8 + noised.numel()].view(noised.shape)
    with target.kernels():
        target.module.channel_concat_noise_portable(
            *map(view, others), patch, *map(view, keys), view(tokens), view(noise), stream_of(target.device)
        )
    assert memory.isfinite().sum() == tokens.numel() + noise.numel()
    assert_right(tokens, (noise, *arguments[1:]))


def test_frames_without_channels_or_pixels(target):
    keys = torch.tensor([[1, 2], [3, 4]], device=target.device)
    control, weight, bias = (torch.randn(*size, device=target.device).half() for size in ((2, 8, 3, 3), (16, 8), (16,)))
    nothing, empty = control[:, :0], control[:, :4, :0]
    with target.kernels(KERNEL, NOISE_KERNEL):
        tokens = channel_concat(nothing, nothing, control, weight, bias, 1)
        assert_right(tokens, (nothing, nothing, control, weight, bias, 1))
        again, noise = channel_concat_noise(nothing, control, weight, bias, 1, *keys)
        assert torch.equal(again, tokens) and noise.shape == nothing.shape
        assert channel_concat(empty, empty, None, weight, bias, 1).shape == (2, 0, 16)
        tokens, noise = channel_concat_noise(empty, None, weight, bias, 1, *keys)
        assert tokens.shape == (2, 0, 16) and noise.shape == empty.shape
        assert channel_concat_noise(control[:0], None, weight.repeat(1, 2), bias, 1, *keys[:, :0])[0].shape == (
            0,
            9,
            16,
        )


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
    """A kernel asked for says what it does not do; otherwise the composition runs."""
    arguments = change(inputs(target, 2, torch.bfloat16))
    keys = torch.tensor([[1, 2], [3, 4]], device=target.device)
    with target.kernels(KERNEL, NOISE_KERNEL):
        with pytest.raises(target.module.Unsupported, match=message):
            channel_concat(*arguments)
        with pytest.raises(target.module.Unsupported, match=message):
            channel_concat_noise(*arguments[1:], *keys)
    assert channel_concat(*arguments).isfinite().all()


@PATCHES
@pytest.mark.parametrize("which", [0, 1, 2], ids=["noised", "recycled", "control"])
def test_any_memory_format(which, patch, target):
    """Channels last, as convolutions give it, and pixels that lie apart; each source by itself."""
    arguments = inputs(target, patch, torch.bfloat16)
    frames, keys = arguments[which], torch.tensor([[1, 2], [3, 4]], device=target.device)
    with target.kernels(KERNEL, NOISE_KERNEL):
        expected = channel_concat(*arguments), channel_concat_noise(*arguments[1:], *keys)[0]
        for view in (frames.contiguous(memory_format=torch.channels_last), every_second(frames)):
            changed = [*arguments[:which], view, *arguments[which + 1 :]]
            assert not view.is_contiguous()
            assert torch.equal(channel_concat(*changed), expected[0])
            assert torch.equal(channel_concat_noise(*changed[1:], *keys)[0], expected[1])


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
    "noise": ({"noise": torch.ones(2, 17, 10, 24).half()}, r"noise: expected shape \[2, 17, 10, 26\], got"),
    "noise dtype": ({"noise": torch.ones(2, 17, 10, 26)}, "noise: expected float16, got float32"),
    "noise strides": ({"noise": every_second(torch.ones(2, 17, 10, 26).half())}, "noise: expected a contiguous"),
    "seed": ({"seed": torch.tensor([1])}, r"seed: expected shape \[2\], got \[1\]"),
    "seed dtype": ({"seed": torch.tensor([1, 2]).int()}, "seed: expected int64, got int32"),
    "step": ({"step": torch.tensor([1, 2, 3])}, r"step: expected shape \[2\], got \[3\]"),
}


@pytest.mark.parametrize(("change", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(change, message, target):
    """Of the compiled functions: the ops check their arguments before they call them."""
    names = ("noised", "recycled", "control", "weight", "bias", "patch")
    good = dict(zip(names, inputs(target, 2, torch.float16), strict=True))
    good |= {"tokens": torch.empty(2, 65, 200).half(), "noise": torch.empty(2, 17, 10, 26).half()}
    good |= {"seed": torch.tensor([1, 2]), "step": torch.tensor([3, 4])}
    given = {name: x if isinstance(x, int) else view(x) for name, x in {**good, **change}.items()}
    noise_names = {"noise", "seed", "step"}
    called = 0
    for function, without in (("channel_concat_portable", noise_names), ("channel_concat_noise_portable", {"noised"})):
        if change.keys() & without:
            continue
        with pytest.raises(ValueError, match=message):
            getattr(target.module, function)(**{x: y for x, y in given.items() if x not in without}, stream=(0, 0))
        called += 1
    assert called


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
    *tensors, patch = inputs(target, 2, torch.bfloat16, tokens=1, features=16)
    for tensor in tensors:
        tensor.requires_grad_()
    plain = [x.detach() for x in tensors[1:]]
    keys = torch.tensor([[1, 2], [3, 4]], device=target.device)
    with target.kernels("all"):
        torch.library.opcheck(torch.ops.aapt.channel_concat.default, (*tensors, patch))
        torch.library.opcheck(torch.ops.aapt.channel_concat_noise.default, (*plain, patch, *keys))


def test_compile(target):
    arguments = inputs(target, 2, torch.bfloat16)
    arguments[3].requires_grad_()
    compiled = torch.compile(channel_concat, fullgraph=True, backend="aot_eager")
    with target.kernels(KERNEL):
        tokens, expected = compiled(*arguments), channel_concat(*arguments)
    assert torch.equal(tokens, expected)
    gradients = (torch.autograd.grad(x.float().square().sum(), arguments[3])[0] for x in (tokens, expected))
    assert_near(*gradients, 1e-2)
