# SPDX-License-Identifier: Apache-2.0
"""Keys and values of past frames, computed again under the prompt of now: the policy "recompute" of `set_prompt`.

Steps that the next step sees are evaluated in their order, each over those before it, as they were taken: with their
frames, noise and control, at their positions. Frames stay as they were shown.

As long as no frame has left the window, the result is the cache of a run that had the prompt from the start, bit for
bit. Later, frames that have left it are not there to be seen: layers above the first, and evaluations after the first,
lack what those would have told them.
"""

from __future__ import annotations

from aapt_fast.models.sampling import Sampler, TakenStep
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming.cache import PagedCache
from aapt_fast.streaming.run import Run
from aapt_fast.streaming.step import draw_noise, noise_inputs, shown_control


def can_recompute(sampler: Sampler) -> bool:
    """True if the sampler says how past frames are evaluated again."""
    return type(sampler).recompute is not Sampler.recompute


def recompute_past(model: StreamModel, sampler: Sampler, run: Run) -> None:
    """Write the keys and values of all frames that the next step of `run` sees under its prompt and context.

    An error in between leaves the caches incomplete: the run has to be released then.
    """
    past, generator, start = run.past, model.generator, run.start
    assert past is not None
    next_frame = past.first_frame(run.steps + 1)
    sees_image = past.image_frames > 0 and past.rule.seen(past.first_frame(run.steps + 2) - 1)[0][0] == 1
    for row in run.rows:
        row.begin_again()
    caches = [PagedCache([row]) for row in run.rows]
    with model.autocast():
        if sees_image:
            assert start.image is not None
            sampler.remember(generator, start.image, run.context, caches)
        for step in past.seen(run.steps):
            for row in run.rows:
                row.skip_to(past.first_frame(step))
            sampler.recompute(generator, _taken(model, sampler, run, step), run.context, caches)
    for row in run.rows:
        row.skip_to(next_frame)


def _taken(model: StreamModel, sampler: Sampler, run: Run, step: int) -> TakenStep:
    """The step with this number, as it was taken."""
    assert run.past is not None
    (frames, own), (before, control_before) = run.past.made[step], run.past.made[step - 1]
    assert frames is not None
    numbers = noise_inputs([run.start.seed], [step], frames.shape[2], sampler.draws).to(model.device)
    control = None if own is None or model.control is None else shown_control(model.control, own, control_before)
    return TakenStep(
        frames,
        draw_noise(numbers, model.config.latent_channels, model.grid),
        before if model.generator.needs_image else None,
        None if control is None else control[None, :, None],
        step == 1,
    )
