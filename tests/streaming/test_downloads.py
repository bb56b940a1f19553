# SPDX-License-Identifier: Apache-2.0
"""Videos that are copied to the host in turn, on a CPU; tests/gpu/test_host_copies.py has the same from a GPU."""

from __future__ import annotations

import queue
import threading

import numpy
import pytest
import torch

from aapt_fast import FrameDownloader
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.testing.streams import play, random_controls, random_model, random_session


def video(value: int, frames: int = 4) -> torch.Tensor:
    return torch.full((frames, 3, 5, 3), value, dtype=torch.uint8)


@pytest.mark.parametrize("buffers", [2, 3])
def test_a_result_lasts_until_its_buffer_is_given_away(buffers):
    out = FrameDownloader(buffers)
    pending = [out.submit(video(number)) for number in range(buffers)]
    arrays = [each.result() for each in pending]
    for number in range(buffers, 8):
        for age, array in enumerate(arrays[number - buffers :]):
            assert array.shape == (4, 3, 5, 3) and array.dtype == numpy.uint8
            assert (array == number - buffers + age).all()
        pending.append(out.submit(video(number)))
        arrays.append(pending[-1].result())
        assert (arrays[number - buffers] == number).all()  # the docstring says so: it was a view
        with pytest.raises(RuntimeError, match=rf"result: expected a call before {buffers} more videos are submitted"):
            pending[number - buffers].result()
        assert numpy.shares_memory(pending[number - buffers + 1].result(), arrays[number - buffers + 1])


def test_what_is_sent_may_be_dropped_and_changed():
    out, source = FrameDownloader(), video(1)
    pending = out.submit(source)
    source.fill_(9)
    assert (pending.result() == 1).all()
    kept = video(2)
    pending.result()[:] = 7
    assert (out.submit(kept).result() == 2).all() and (kept == 2).all()


def test_sizes_may_change():
    """A Wan session begins with 9 video frames and goes on with 12."""
    out, before = FrameDownloader(), None
    for value, frames in enumerate((1, 9, 12, 4, 12, 0)):
        pending = out.submit(video(value, frames))
        assert before is None or (before.result() == value - 1).all()
        assert pending.result().shape == (frames, 3, 5, 3) and (pending.result() == value).all()
        before = pending


def test_videos_that_do_not_lie_in_one_piece():
    turned = torch.arange(60, dtype=torch.uint8).view(1, 3, 4, 5).permute(0, 2, 3, 1)
    assert (FrameDownloader().submit(turned).result() == turned.numpy()).all()


@pytest.mark.parametrize("first", [True, False])
def test_inference_mode_around_some_of_it(first):
    out = FrameDownloader()
    with torch.inference_mode(first):
        for value in range(2):
            out.submit(video(value))
    with torch.inference_mode(not first):
        for value in range(4):
            assert (out.submit(video(value)).result() == value).all()


def test_the_example_of_the_docstring():
    """The slowest consumer: it reads each video when nothing more can be sent before it asks for the next one."""
    model, steps = random_model(NANO), 8
    controls = random_controls(model, steps)
    expected = play(random_session(model), controls)[1].split(4)
    out, videos, sent, shown = FrameDownloader(3), queue.Queue(1), threading.Semaphore(0), []

    def show() -> None:
        for number in range(steps):
            array = videos.get().result()
            for _ in range(3 if number == 0 else number + 3 <= steps):
                sent.acquire()
            shown.append(array.copy())

    consumer = threading.Thread(target=show)
    consumer.start()
    session = random_session(model)
    for control in controls:
        pending = out.submit(session.step(control))
        sent.release()
        videos.put(pending)
    consumer.join()
    for array, wanted in zip(shown, expected, strict=True):
        assert (array == wanted.numpy()).all()


def test_bad_input():
    for buffers, error in ((1, ValueError), (0, ValueError), (2.0, TypeError), (None, TypeError)):
        with pytest.raises(error, match="buffers: expected"):
            FrameDownloader(buffers)
    out = FrameDownloader()
    kept = out.submit(video(1)), out.submit(video(2))
    for bad, error, message in (
        (video(1).numpy(), TypeError, "video: expected Tensor, got ndarray"),
        (video(1)[0], ValueError, r"video: expected shape \[F, H, W, 3\], got \[3, 5, 3\]"),
        (video(1).permute(0, 3, 1, 2), ValueError, r"video: expected shape \[F, H, W, 3\]"),
        (video(1).float(), ValueError, "video: expected torch.uint8, got torch.float32"),
        (video(1).to("meta"), ValueError, "video: expected one on a CPU or a CUDA device, got one on meta"),
    ):
        with pytest.raises(error, match=message):
            out.submit(bad)
    assert [int(pending.result().max()) for pending in kept] == [1, 2]  # nothing was given away
