# SPDX-License-Identifier: Apache-2.0
"""After os.fork() a session is refused in the child: torch's threads are not there, and a step would never end."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable

import pytest

from aapt_fast import PagePool, SessionBatch
from aapt_fast.testing.streams import STREAMS, play, random_controls, random_image, random_model, random_session


def told_by_a_child(calls: list[Callable[[], object]]) -> list[str]:
    """Messages of the RuntimeErrors that `calls` raise in a forked process, or "no error"."""
    context = multiprocessing.get_context("fork")
    messages = context.SimpleQueue()

    def child() -> None:
        for call in calls:
            try:
                call()
                messages.put("no error")
            except RuntimeError as error:
                messages.put(str(error))

    process = context.Process(target=child)
    process.start()
    try:
        process.join(120)
        assert process.exitcode == 0, "the child hangs or has failed"
        return [messages.get() for _ in calls]
    finally:
        process.kill()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_session_and_a_batch_are_refused_in_a_child(pose_model):
    session, controls = random_session(pose_model), random_controls(pose_model, 2)
    batch, player = SessionBatch([session]), session.frames(controls)
    other = random_session(pose_model)
    ahead = other.frames(controls, ahead=True)
    next(player), next(ahead)
    calls = [lambda: session.step(controls[1]), lambda: next(player), session.fork, session.reset]
    calls += [lambda: next(ahead), lambda: other.step(controls[1])]
    calls.append(lambda: batch.step(controls[1:]))
    messages = told_by_a_child(calls)
    assert set(messages) == {messages[0]} and len(messages) == len(calls)
    assert messages[0].startswith("session: it was opened in another process, before os.fork()")
    assert play(session, controls[1:])[1].shape == (4, 32, 32, 3), "the parent's session is unharmed"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_all_that_computes_with_a_model_of_the_parent_is_refused_in_a_child(tmp_path):
    model = random_model(STREAMS["text"])
    image, frame = random_image(model), random_session(model).frame
    copies = [model, copy.deepcopy(model), copy.copy(model)]
    calls = [lambda each=each: random_session(each) for each in copies]
    calls += [lambda: copy.copy(model).encode_image(image), lambda: model.decode(model.vae.stream(), frame)]
    calls += [lambda: model.embed("words"), lambda: PagePool.for_sessions(model, 1)]
    calls.append(lambda: model.save_pretrained(tmp_path / "x.safetensors"))
    messages = told_by_a_child(calls)
    assert set(messages) == {messages[0]} and len(messages) == len(calls)
    assert messages[0].startswith("model: it was made in another process, before os.fork()")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_model_that_is_unpickled_in_a_process_belongs_to_it(pose_model):
    in_bytes = pickle.dumps(pose_model)
    assert told_by_a_child([lambda: pickle.loads(in_bytes).require_own_process()]) == ["no error"]
