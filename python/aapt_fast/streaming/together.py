# SPDX-License-Identifier: Apache-2.0
"""One step of several sessions, whose next frames one evaluation of the generator makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from aapt_fast.errors import require, require_type
from aapt_fast.streaming.boundary import computing, ordinary, wait_for
from aapt_fast.streaming.samplers import FrameSampler
from aapt_fast.streaming.session import StreamSession

AnyFrameSampler = TypeVar("AnyFrameSampler", bound=FrameSampler)


def step_together(sessions: Sequence[StreamSession], controls: Sequence[object] | None = None) -> list[Tensor]:
    """What `step` gives, for several sessions, whose next frames one evaluation of the generator makes.

    The weights are read once for all of them, so this takes less time than one step after the other. Every session may
    be at another step of its run, of another seed and prompt. Up to rounding the frames are those of `step`.

    Args:
        sessions: of one AAPT model, in one pool (`page_pool`), with as many evaluations per step. A `RecordedBatch`
            takes those with `cuda_graph=True`.
        controls: one per session, as in `StreamSession.step`; None for a model without control.

    Returns:
        One video per session, uint8 [4, H, W, 3].

    Raises:
        TypeError, ValueError: sessions that cannot be batched, a bad control. Nothing has changed.
        PoolExhausted: as in `StreamSession.step`; nothing has changed.
        SessionClosed: one of them is closed; nothing has changed. Any other error in the middle closes them all.
    """
    sessions = items("sessions", sessions)
    expected = "sessions of an AAPT generator that are not recorded (RecordedBatch takes recorded ones)"
    samplers = batched_samplers(sessions, FrameSampler, expected)

    def evaluate(recycled: Tensor, control: Tensor) -> Tensor:
        seeds, steps = [session.seed for session in sessions], [session.steps + 1 for session in sessions]
        return FrameSampler.step_together(samplers, seeds, steps, recycled, control)

    return take_step(sessions, samplers, controls, evaluate)


def take_step(
    sessions: Sequence[StreamSession],
    samplers: Sequence[FrameSampler],
    controls: Sequence[object] | None,
    evaluate: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """A step of open sessions with these samplers; videos, uint8 [4, H, W, 3] each.

    Args:
        sessions: at least one.
        samplers: theirs.
        controls: see `step_together`.
        evaluate: recycled frames [B, C, 1, h, w] and controls [B, step_channels, 1, h, w] (no channels for a model
            without) -> frames [B, C, 1, h, w], a row per session.

    Raises:
        TypeError, ValueError, PoolExhausted: see `step_together`.
    """
    begun = time.perf_counter()
    given = [None] * len(sessions) if controls is None else items("controls", controls)
    require(len(given) == len(sessions), "controls", f"{len(sessions)}, one per session", len(given))
    first = sessions[0].model
    with computing(first):
        entries = [session._entries(control) for session, control in zip(sessions, given, strict=True)]
        for sampler in samplers:
            sampler.prepare()
        try:
            nothing = torch.empty(0, *first.grid, dtype=torch.float32, device=first.device)
            inputs = [session._inputs(each) for session, each in zip(sessions, entries, strict=True)]
            control = torch.stack([nothing if each is None else each for each in inputs])[:, :, None]
            frames = evaluate(torch.cat([session._frame for session in sessions]), control).split(1)
            videos = [ordinary(session._decode(frame)) for session, frame in zip(sessions, frames, strict=True)]
            wait_for(videos[-1])
        except BaseException as error:
            for session in sessions:
                session._close(f"by {type(error).__name__} in a step together with others")
            raise
    for session, frame, each in zip(sessions, frames, entries, strict=True):
        session._end_step(frame, each, begun)
    return videos


def batched_samplers(
    sessions: Sequence[StreamSession], kind: type[AnyFrameSampler], expected: str
) -> list[AnyFrameSampler]:
    """The samplers of sessions that can take a step together; raises what `step_together` does if they cannot.

    Each has to be a `kind`, else `expected` says which sessions are meant.
    """
    require(len(sessions) > 0, "sessions", "at least one", "none")
    samplers = []
    for session in sessions:
        require_type("sessions", session, StreamSession)
        session._require_open()
        first, sampler = sessions[0], session._sampler
        require(type(sampler) is kind, "sessions", expected, f"one with a {type(sampler).__name__}")
        require(session.model is first.model, "sessions", "sessions of the same model object", "of several")
        in_one = "sessions in one pool: StreamSession(..., pool=page_pool(...))"
        require(session._pool is first._pool, "sessions", in_one, "sessions in several")
        require(session.nfe == first.nfe, "sessions", f"{first.nfe} evaluations per step", session.nfe)
        samplers.append(cast(AnyFrameSampler, sampler))
    require(len({id(session) for session in sessions}) == len(sessions), "sessions", "each once", "one of them twice")
    return samplers


def items(name: str, values: Any) -> list[Any]:
    """`values` as a list; raises TypeError, naming the argument, if they are not several."""
    try:
        return list(values)
    except TypeError as error:
        raise TypeError(f"{name}: expected a sequence, one per session, got {type(values).__name__}") from error
