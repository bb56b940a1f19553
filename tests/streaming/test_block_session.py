# SPDX-License-Identifier: Apache-2.0
"""Sessions of a Wan transformer: blocks of frames from a prompt, maybe an image."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from aapt_fast.errors import PoolExhausted, SessionClosed
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.aapt.sampling import EulerSampler
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.ops import philox_normal
from aapt_fast.ops.window import WindowRule
from aapt_fast.streaming.pages import PagePool, session_pages
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.streams import SMALL_VAE, random_image, random_model, shuffled_pool
from aapt_fast.testing.wan import TINY, WAN_KINDS, random_wan

GRID, STEPS, SEED = (4, 6), 4, 7
SCHEDULES = {
    "published, blocks of the model": FewStepSampler(),
    "frame by frame": FewStepSampler(steps=(1000, 500), window=WindowRule(1, 1, 1)),
    "blocks of 3, noisy context": FewStepSampler(steps=(1000,), context_noise=50.0, window=WindowRule(3, 4)),
    "more for the first": FewStepSampler(steps=(1000,), first_steps=(1000, 750, 500), window=WindowRule(1, 2, 1)),
}


def make_model(dtype: torch.dtype = torch.float32, **changes) -> StreamModel:
    vae_model = random_model(NANO)  # its VAE has random weights everywhere
    generator = random_wan(dataclasses.replace(TINY, **changes)).to(dtype)
    return StreamModel(generator, vae_model.vae, "tiny wan", grid=GRID)


@pytest.fixture(scope="module")
def model() -> StreamModel:
    return make_model()


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def schedule(request) -> FewStepSampler:
    return request.param


def a_prompt(seed: int = 4, length: int = 5) -> Tensor:
    return torch.randn(length, TINY.text_width, generator=torch.Generator().manual_seed(seed))


def a_session(model: StreamModel, image: bool = False, **options) -> StreamSession:
    first = random_image(model) if image else None
    return StreamSession(model, first, **{"prompt": a_prompt(), "seed": SEED, **options})


def play(session: StreamSession, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Frames [1, C, n, h, w] and video [F, H, W, 3] of some steps."""
    frames, video = [], []
    for _ in range(steps):
        video.append(session.step())
        frames.append(session.frame)
    return torch.cat(frames, 2), torch.cat(video)


@torch.no_grad()
def rollout(model: StreamModel, schedule: FewStepSampler, image: Tensor | None) -> Tensor:
    """The same frames over the growing cache, with the noise numbered by frame and evaluation."""
    generator, blocks = model.generator, schedule.rule(model.generator)
    context, cache = (
        generator.encode_context(generator.prepare_prompt(a_prompt()[None])),
        generator.new_cache(*GRID, blocks),
    )
    if image is not None:
        schedule.remember(generator, image, context, [cache])
    frames = []
    for block in range(STEPS):
        noise, draws = [], schedule.draws
        for k in range(draws):
            numbers = [f * draws + k + 1 for f in range(block * blocks.frames, (block + 1) * blocks.frames)]
            drawn = [philox_normal(torch.tensor([SEED]), torch.tensor([n]), (16, *GRID)) for n in numbers]
            noise.append(torch.stack(drawn, 2))
        frames.append(schedule.sample(generator, torch.stack(noise), None, None, context, [cache], block == 0))
    return torch.cat(frames, 2)


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_stream_equals_rollout(model, schedule, image):
    session = a_session(model, image, sampler=schedule)
    first = session.frame if image else None
    frames, video = play(session)
    assert_near(frames, rollout(model, schedule, first), 1e-4)
    assert frames.std() > 0.3 and frames.dtype == torch.float32
    n = schedule.rule(model.generator).frames
    assert session.steps == STEPS and session.sampler.nfe == len(schedule.steps) + 1
    assert video.shape == (4 * n * STEPS - 3 * (not image), 32, 48, 3) and video.dtype == torch.uint8

    latents = frames if first is None else torch.cat([first, frames], 2)
    with torch.no_grad():
        decoded = model.vae.decode(latents)[0].permute(1, 2, 3, 0)
    streamed = video if first is None else torch.cat([session.first_frame[None], video])
    assert_near(streamed / 127.5 - 1, decoded, 0.5001 / 127.5)


@pytest.mark.parametrize("shared", [False, True], ids=["own pools", "one pool"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_forks_go_on_bit_for_bit(model, at, shared):
    expected = each_step(a_session(model), at + 3)
    pool = shuffled_pool(model, 3 * session_pages(model.generator, model.grid)) if shared else None
    origin = a_session(model, pool=pool)
    for _ in range(at):
        origin.step()
    fork = origin.fork()
    fork_of_fork = fork.fork()
    assert torch.equal(fork.step(), expected[at])
    for step in range(at, at + 3):
        assert torch.equal(origin.step(), expected[step])
    origin.close()
    for step in range(at, at + 3):
        assert torch.equal(fork_of_fork.step(), expected[step])
    fork_of_fork.close()
    assert torch.equal(fork.step(), expected[at + 1])
    if shared:
        fork.close()
        assert pool.free == pool.available == pool.pages


def each_step(session: StreamSession, steps: int) -> list[Tensor]:
    return [session.step() for _ in range(steps)]


def test_seed_prompt_and_image_count(model):
    video = play(a_session(model))[1]
    assert torch.equal(play(a_session(model))[1], video)
    for options in ({"seed": 8}, {"prompt": a_prompt(5)}):
        assert not torch.equal(play(a_session(model, **options))[1], video)
    with_image = play(a_session(model, image=True))[0]
    assert (with_image - play(a_session(model))[0]).abs().max() > 1e-2


def test_a_prompt_is_padded(model):
    padded = torch.cat([a_prompt(), torch.zeros(507, TINY.text_width)])
    assert torch.equal(play(a_session(model, prompt=padded), 2)[0], play(a_session(model), 2)[0])
    assert model.embed(a_prompt()).shape == (1, 512, TINY.text_width)
    assert not torch.equal(play(a_session(make_model(text_length=5)), 2)[0], play(a_session(model), 2)[0])


def test_the_place_of_pages_changes_nothing(model):
    expected = play(a_session(model))
    for _ in range(2):
        pool = shuffled_pool(model, 2 * session_pages(model.generator, model.grid))
        assert all(torch.equal(*pair) for pair in zip(play(a_session(model, pool=pool)), expected, strict=True))


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_reset_starts_over(model, image):
    session = a_session(model, image)
    expected = play(session)[1]
    session.reset()
    assert session.steps == 0
    assert torch.equal(play(session)[1], expected)
    session.reset(prompt=a_prompt(5), seed=9)
    assert torch.equal(play(session)[1], play(a_session(model, image, prompt=a_prompt(5), seed=9))[1])
    session.reset(random_image(model, seed=8))
    other = StreamSession(model, random_image(model, seed=8), prompt=a_prompt(5), seed=9)
    assert torch.equal(play(session)[1], play(other)[1])


def test_half_precision_follows_float32(model):
    half, exact = (play(a_session(m), 3)[0] for m in (make_model(torch.bfloat16), model))
    assert half.dtype == torch.float32
    assert (half - exact).norm() / exact.norm() < 0.1


def test_memory_is_reserved_at_the_door_and_given_back(model):
    need = session_pages(model.generator, model.grid)
    with pytest.raises(PoolExhausted):
        a_session(model, pool=PagePool.for_model(model, need - 1))
    pool = PagePool.for_model(model, need)
    session = a_session(model, pool=pool)
    with pytest.raises(PoolExhausted):
        session.fork()
    play(session)
    with pytest.raises(PoolExhausted):
        a_session(model, pool=pool)
    session.close()
    session.close()
    assert pool.free == pool.available == pool.pages
    with pytest.raises(SessionClosed):
        session.step()


def test_an_error_in_a_step_closes_the_session(model, monkeypatch):
    session = a_session(model)
    session.step()
    monkeypatch.setattr(model.vae, "decoder", None)
    with pytest.raises(TypeError):
        session.step()
    with pytest.raises(SessionClosed, match="in step 2"):
        session.step()


def test_bad_arguments(model):
    bad = [
        ({"prompt": None}, "prompt: expected a prompt: this generator always attends to text"),
        ({"prompt": a_prompt(length=513)}, "at most 512 tokens, got 513"),
        (
            {"sampler": EulerSampler()},
            "sampler: expected FewStepSampler, or .* this generator, got EulerSampler, WanConfig",
        ),
        ({"image_control": torch.zeros(3)}, "image_control: expected None"),
        ({"sampler": FewStepSampler(window=WindowRule(3))}, "window: expected a number of past frames"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            a_session(model, **options)
    with pytest.raises(ValueError, match="control: expected None"):
        a_session(model).step(torch.zeros(3))
    with pytest.raises(ValueError, match="frame: expected an image or a step before"):
        _ = a_session(model).frame
    pose = random_model(NANO)
    with pytest.raises(ValueError, match="expected EulerSampler, or another for this generator, got FewStepSampler"):
        StreamSession(pose, random_image(pose), sampler=FewStepSampler())
    with pytest.raises(ValueError, match="image: expected an image"):
        StreamSession(pose)


def test_bad_models():
    vae = MiniVAE(SMALL_VAE)
    with pytest.raises(ValueError, match="grid: expected two positive multiples of 2, got"):
        StreamModel(random_wan(), vae, grid=(4, 5))
    for grid in ((6,), 6, "6x8", (6.0, 8.0)):
        with pytest.raises(ValueError, match="grid: expected two whole numbers: latent height and width, got "):
            StreamModel(random_wan(), vae, grid=grid)
    with pytest.raises(ValueError, match=r"grid: expected None or .*, the native grid"):
        StreamModel(random_model(NANO).generator, vae, grid=(4, 6))
    assert StreamModel(random_wan(), vae).video_size == (480, 832)
    with pytest.raises(ValueError, match="16 channels in and out, got 36 in"):
        StreamSession(StreamModel(random_wan(WAN_KINDS["i2v"]), vae, grid=GRID), prompt=torch.zeros(3, 24))
