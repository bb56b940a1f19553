# SPDX-License-Identifier: Apache-2.0
"""Recording as CUDA would have it, on the fake GPU: each mistake that CUDA punishes is refused."""

from __future__ import annotations

import gc
import threading
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from aapt_fast import FrameDownloader
from aapt_fast.streaming import graph
from aapt_fast.streaming.downloads import PendingFrames
from aapt_fast.streaming.graph import GraphMemory, record
from aapt_fast.testing.fake_cuda import FAKE_GPU

OTHER_GPU = torch.device("cuda:1")


@pytest.fixture
def memory(gpu) -> GraphMemory:
    return GraphMemory(FAKE_GPU)


def weight() -> Tensor:
    return torch.zeros(8, 8, device=FAKE_GPU)


# ---- the host inside a recording ----


def indexed_from_the_host(x: Tensor) -> Tensor:
    return x[torch.tensor([0, 1])]


MISTAKES = {
    "a value read": (lambda x: x + x.sum().item(), "a wait of the host"),
    "a truth": (lambda x: x if x.any() else -x, "a wait of the host"),
    "a wait for a stream": (lambda x: (torch.cuda.current_stream().synchronize(), x)[1], "a wait of the host"),
    "a wait for the GPU": (lambda x: (torch.cuda.synchronize(), x)[1], "a wait of the host"),
    "a look at an event": (lambda x: (torch.cuda.Event().query(), x)[1], "a look at an event"),
    "a copy to the host": (lambda x: x.cpu(), "a wait of the host"),
    "a copy from the host": (lambda x: x + torch.ones(8).to(FAKE_GPU), "a copy from the host"),
    "a new tensor of numbers": (lambda x: x + torch.tensor([1.0], device=FAKE_GPU), "a copy from the host"),
    "a copy into a tensor": (lambda x: x.copy_(torch.ones(8, 8)), "a copy from the host"),
    "pinned memory": (lambda x: (torch.empty(8, pin_memory=True), x)[1], "an allocation of pinned memory"),
    "memory that is pinned": (lambda x: (torch.ones(8).pin_memory(), x)[1], "an allocation of pinned memory"),
    "a tensor of the host": (lambda x: x + torch.ones(8), "expected tensors of one device"),
    "an index of the host": (indexed_from_the_host, "expected tensors of one device"),
    "cached memory": (lambda x: (torch.cuda.empty_cache(), x)[1], "a release of cached memory"),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_the_host_is_refused_inside(mistake, message, gpu, memory, monkeypatch):
    """Only inside: the warm-ups before would find most of these as well. Afterwards all is as before."""
    x, stream = weight(), torch.cuda.current_stream()
    outside = torch.zeros(8, 8, device=FAKE_GPU)
    with pytest.raises(RuntimeError, match="cuda_graph: recording a step failed") as failed:
        record(lambda: mistake(x) if gpu.recording else outside + 1, memory)
    assert message in str(failed.value) + str(failed.value.__cause__.__context__)
    assert not gpu.recording and torch.cuda.current_stream() is stream
    assert record(lambda: x + 1, memory).replay().shape == (8, 8)


def test_numbers_of_the_host_are_arguments_of_kernels(memory):
    x = weight()
    record(lambda: x * torch.tensor(2.0) + 1, memory).replay()


# ---- memory ----


def test_memory_that_a_replay_needs_must_live(memory):
    cast: list[Tensor] = []

    def cached() -> Tensor:
        if not cast:
            cast.append(x.to(torch.bfloat16))  # in a warm-up
        return cast[0] + 1

    x = weight()
    recording = record(cached, memory)
    recording.replay()
    cast.clear()
    with pytest.raises(RuntimeError, match="reads memory that has been given back"):
        recording.replay()


def multiplied(x: Tensor) -> tuple[graph.Recording, graph.Recording]:
    """Two recordings on one stream that multiply by [8, 8]."""
    memory = GraphMemory(FAKE_GPU)
    return record(lambda: x @ x @ x, memory), record(lambda: x @ x @ x, memory)


def test_work_space_of_cublas_is_each_recordings_own(gpu, monkeypatch):
    x = weight()
    first, second = multiplied(x)
    first.free()
    second.replay()
    monkeypatch.setattr(graph, "_own_workspaces", nullcontext)  # as torch does by itself
    first, second = multiplied(x)
    first.free()
    with pytest.raises(RuntimeError, match="reads memory that has been given back"):
        second.replay()


def test_a_torch_without_the_private_function(gpu, memory, monkeypatch):
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces")
    record(weight, memory).replay()


def test_recordings_of_one_memory_share_it_and_give_it_back(gpu):
    def of(mib: int) -> graph.Recording:
        def through_a_temporary() -> Tensor:
            return torch.zeros(mib, 2**20, dtype=torch.uint8, device=FAKE_GPU)[:, :1] + 1

        return record(through_a_temporary, memory)

    gc.collect()
    before, memory = gpu.live_bytes, GraphMemory(FAKE_GPU)
    recordings = [of(64), of(40)]
    assert 64 <= (gpu.live_bytes - before) / 2**20 < 65
    recordings.pop().free()
    assert 64 <= (gpu.live_bytes - before) / 2**20 < 65
    recordings.pop().free()
    assert gpu.live_bytes == before


# ---- threads ----


def in_a_thread(function) -> list[BaseException]:
    """Run `function` in a fresh thread and list the error that it raised, if any."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors


def test_another_thread_may_wait_for_its_frames_meanwhile(gpu, memory):
    """A reset, a fork or a new session records while a consumer waits for a download."""
    x, pending = weight(), PendingFrames(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.cuda.Event(), 2)
    errors: list[BaseException] = []

    def step() -> Tensor:
        errors.extend(in_a_thread(pending.result))
        return x + 1

    record(step, memory).replay()
    assert not errors


def test_in_mode_global_it_would_end_the_recording(gpu, memory):
    """Torch's default mode."""
    with pytest.raises(RuntimeError, match="because of an earlier error"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        [error] = in_a_thread(torch.cuda.Event().synchronize)
    assert "a wait of the host" in str(error)


def test_two_recordings_at_a_time_are_refused(gpu):
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream(FAKE_GPU)):
        [error] = in_a_thread(torch.cuda.CUDAGraph().capture_begin)
    assert "another one is recorded at the same time" in str(error)


# ---- several GPUs ----


def test_recording_and_downloads_open_no_other_gpu(gpu, monkeypatch):
    """GPU 0 is current, as it is at the beginning of every thread."""
    x = torch.zeros(4, device=OTHER_GPU)
    recording = record(lambda: x + 1, GraphMemory(OTHER_GPU))
    assert recording.replay().device == OTHER_GPU and torch.cuda.current_device() == 0
    video = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device=OTHER_GPU)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)  # takes torch's own streams only
    FrameDownloader().submit(video).result()
    assert gpu.contexts == {1}


def test_torch_by_itself_opens_the_gpu_that_was_current_before(gpu):
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream(OTHER_GPU)):
        pass
    assert gpu.contexts == {0, 1}


def test_a_launch_on_another_gpu_cannot_be_recorded(gpu):
    x = torch.zeros(4, device=OTHER_GPU)
    with pytest.raises(RuntimeError, match="CUDA graph"):
        record(lambda: x + 1, GraphMemory(FAKE_GPU))
