# SPDX-License-Identifier: Apache-2.0
"""Recorded steps, played back by `testing.recorder` as a GPU plays a CUDA graph, are the steps of any other session."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
import torch

from aapt_fast import SessionBatch
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.aapt.sampling import EulerSampler
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.ops import FrameRope
from aapt_fast.ops.window import WindowRule
from aapt_fast.streaming import graph
from aapt_fast.streaming.cache import PagedCache
from aapt_fast.streaming.cache_row import CacheRow
from aapt_fast.streaming.graph import GraphMemory, RecordedDecoder, Recording, record
from aapt_fast.streaming.pages import PagePool, cache_pages, session_pages
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.recorder import record_on_cpu
from aapt_fast.testing.streams import play, random_controls, random_model, random_session, shuffled_pool

STEPS = 7  # frame 1 leaves the window of 2 after step 3
MEMORY = GraphMemory(torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("recorded_on_the_cpu")


def assert_same_stream(session: StreamSession, expected: StreamSession, controls: list) -> None:
    for actual, wanted in zip(play(session, controls), play(expected, controls), strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("nfe", [1, 3])
def test_a_recorded_stream_equals_one_that_is_not(model, nfe):
    """Through the first frame, the filling and the full window, bit by bit; in pages that were full of NaN."""
    length = model.config.text_width and 5
    pool = shuffled_pool(model, session_pages(model.generator, model.grid, EulerSampler(nfe), length) + 3)
    session = random_session(model, sampler=EulerSampler(nfe), cuda_graph=True, pool=pool)
    assert_same_stream(session, random_session(model, sampler=EulerSampler(nfe)), random_controls(model, STEPS))
    session.close()
    assert pool.free == pool.available == pool.pages


def test_half_precision():
    model = random_model(NANO)
    model.generator.to(torch.bfloat16)
    model = StreamModel(model.generator, model.vae)
    controls = random_controls(model, STEPS)
    assert_same_stream(random_session(model, cuda_graph=True), random_session(model), controls)


def test_replays_run_no_python(model):
    session, calls = random_session(model, cuda_graph=True), []
    controls = random_controls(model, STEPS)
    session.step(controls[0])  # the first step of a run is not replayed
    model.generator.register_forward_hook(lambda *_: calls.append(1))
    play(session, controls[1:])
    assert not calls


@pytest.mark.parametrize("steps", [0, 2, 5])
@pytest.mark.parametrize("shared", [True, False], ids=["one pool", "own pools"])
def test_a_fork_goes_on_by_itself(steps, shared):
    model = random_model(NANO_TEXT)
    pool = shuffled_pool(model, 2 * session_pages(model.generator, model.grid, text_length=5)) if shared else None
    session, plain = random_session(model, cuda_graph=True, pool=pool), random_session(model)
    for _ in range(steps):
        session.step(), plain.step()
    fork, plain_fork = session.fork(), plain.fork()
    assert_same_stream(fork, plain_fork, [None] * 2)
    assert_same_stream(session, plain, [None] * 4)
    assert_same_stream(fork, plain_fork, [None] * 2)
    session.close(), fork.close()
    assert pool is None or pool.available == pool.pages


def test_reset_begins_another_run(model):
    session, controls = random_session(model, cuda_graph=True), random_controls(model, 4)
    play(session, controls)
    session.reset(seed=9)
    assert_same_stream(session, random_session(model, seed=9), controls)


def test_frames_that_were_given_out_stay_as_they_were(model):
    session, controls = random_session(model, cuda_graph=True), random_controls(model, 2)
    video, frame = session.step(controls[0]), session.frame
    kept = video.clone(), frame.clone()
    session.step(controls[1])
    assert torch.equal(video, kept[0]) and torch.equal(frame, kept[1])


@torch.no_grad()
def test_the_decoder_of_wan_is_recorded_too():
    torch.manual_seed(0)
    vae = WanVAE(WanVAEConfig(base_dim=8, num_res_blocks=1)).eval()
    model = StreamModel(random_model(NANO).generator, vae)
    latents = torch.randn(1, 16, 6, *model.grid)
    stream, fork_at = vae.stream(), 3
    expected = [stream.decode_uint8(frame) for frame in latents.split(1, 2)]
    decoder = vae.stream()
    assert torch.equal(decoder.decode_uint8(latents[:, :, :1]), expected[0])
    recorded = RecordedDecoder(model, decoder)
    for number in range(1, 6):
        if number == fork_at:
            fork = recorded.clone()
        assert torch.equal(recorded.decode_uint8(latents[:, :, number : number + 1]), expected[number])
    videos = [fork.decode_uint8(latents[:, :, number : number + 1]) for number in range(fork_at, 6)]
    assert all(torch.equal(*pair) for pair in zip(videos, expected[fork_at:], strict=True)), "each has its own memory"


def test_a_decoder_at_its_beginning_is_not_recorded():
    model = random_model(NANO)
    with pytest.raises(ValueError, match="stream: expected one that has decoded a first chunk, got a new one"):
        RecordedDecoder(model, model.vae.stream())


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("tokens", [4, 70])
def test_a_cache_that_is_recorded_equals_one_that_is_not(window, tokens):
    """The same list in the same tensors in every step, with no more pages."""
    rule = WindowRule(window=window, sink=1, sink_position="saturated")
    pool, other = (PagePool(1, cache_pages(tokens, rule), 2, 8) for _ in range(2))
    rope = FrameRope((tokens // 2, 2), 8)
    recorded, plain = (PagedCache([CacheRow(place, rule, rope, tokens)]) for place in (pool, other))
    tables = None
    for frame in range(1, window + 6):
        q, k, v = torch.randn(3, 1, 1, tokens, 2, 8).unbind()
        recorded.prepare(1)
        recorded.recording, recorded.moves_rows = frame > 1, frame == 1
        for _ in range(2 if frame > 1 else 1):  # as a recording does, before it runs for good
            attended = recorded.attend(0, q, k, v, None, None)
            recorded.advance(1)
        assert torch.equal(attended, plain.attend(0, q, k, v, None, None))
        now = [t.data_ptr() for t in (recorded._table, recorded._moved_ids, recorded._rotation)]
        tables = tables or now
        assert now == tables and recorded._table.shape[2] == cache_pages(tokens, rule)
        if recorded.recording:
            recorded.finish()
        plain.advance(1)
    recorded.rows[0].release()
    assert pool.available == pool.pages


def test_recording_leaves_the_state_as_it_was():
    state = torch.arange(3.0)
    counter = record(lambda: state.add_(1).clone(), MEMORY, [state])
    assert state.tolist() == [0, 1, 2]
    assert counter.replay().tolist() == [1, 2, 3] and counter.replay().tolist() == [2, 3, 4]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad], ids=["inference", "no grad"])
@pytest.mark.parametrize(
    "read", [float, bool, torch.Tensor.item, lambda x: torch.equal(x, x)], ids=["float", "bool", "item", "equal"]
)
def test_waiting_for_a_result_cannot_be_recorded(read, mode):
    values = torch.ones(3)
    expected = "cuda_graph: recording a step failed, cuda_graph=False does without: .*reads a value back"
    with mode(), pytest.raises(RuntimeError, match=expected):
        record(lambda: values * read(values.sum()), MEMORY)


@pytest.mark.parametrize("failing", range(2))
def test_a_recording_that_fails_gives_the_pages_back(monkeypatch, failing):
    """The decoder's and the step's."""
    model, done = random_model(NANO), []

    def recorder(function, memory, restore) -> Recording:
        if len(done) == failing:
            raise RuntimeError("out of memory")
        done.append(1)
        return record_on_cpu(function, memory, restore)

    pool = shuffled_pool(model, session_pages(model.generator, model.grid))
    monkeypatch.setitem(graph.RECORDERS, "cpu", recorder)
    with pytest.raises(RuntimeError, match=r"cuda_graph: recording a step failed, .*: out of memory"):
        random_session(model, cuda_graph=True, pool=pool)
    assert pool.free == pool.available == pool.pages


def test_a_fork_that_cannot_be_recorded_gives_its_pages_back(monkeypatch):
    model = random_model(NANO)
    pool = shuffled_pool(model, 2 * session_pages(model.generator, model.grid))
    session, plain = random_session(model, cuda_graph=True, pool=pool), random_session(model)
    available = pool.available

    def recorder(function, memory, restore) -> Recording:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(graph.RECORDERS, "cpu", recorder)
    with pytest.raises(RuntimeError, match="out of memory"):
        session.fork()
    assert pool.available == available
    assert_same_stream(session, plain, random_controls(model, 3))


def test_a_reset_that_cannot_be_recorded_closes_the_session(monkeypatch):
    model = random_model(NANO)
    pool = shuffled_pool(model, session_pages(model.generator, model.grid))
    session = random_session(model, cuda_graph=True, pool=pool)

    def recorder(function, memory, restore) -> Recording:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(graph.RECORDERS, "cpu", recorder)
    with pytest.raises(RuntimeError, match="out of memory"):
        session.reset()
    assert session.closed and pool.free == pool.available == pool.pages


def test_recordings_go_with_their_run(monkeypatch):
    """At most two recordings of a session are alive, the step's and the decoder's, also during a reset; no garbage
    collection is needed to free them."""
    alive: set[int] = set()
    counted: list[int] = []

    def recorder(function, memory, restore) -> Recording:
        recording = record_on_cpu(function, memory, restore)
        alive.add(number := len(counted))
        counted.append(len(alive))
        replay = weakref.ref(recording._recorded[0].__self__)  # its tensors; the recording itself may be kept
        weakref.finalize(replay(), alive.discard, number)
        return recording

    monkeypatch.setitem(graph.RECORDERS, "cpu", recorder)
    model = random_model(NANO)
    [control] = random_controls(model, 1)
    gc.collect()
    gc.disable()
    try:
        session = random_session(model, cuda_graph=True)
        for _ in range(2):
            session.step(control)
            session.reset()
        fork = session.fork()
        assert counted == [1, 2, 1, 2, 1, 2, 3, 4]
        fork.close()
        assert len(alive) == 2
        session.close()
        assert not alive
    finally:
        gc.enable()


@pytest.mark.parametrize("end", [StreamSession.close, StreamSession.reset], ids=["close", "reset"])
def test_the_recording_of_a_batch_goes_with_any_of_its_sessions(end, pose_model):
    pool = PagePool.for_sessions(pose_model, 2)
    sessions = [random_session(pose_model, pool=pool) for _ in range(2)]
    batch = SessionBatch(sessions, cuda_graph=True)
    recording = batch._step._recording
    end(sessions[1])
    with pytest.raises(ValueError, match="recording: expected one of a run that has not ended, got one that has been"):
        recording.replay()


def test_one_thread_records_at_a_time(monkeypatch):
    recording, overlaps = threading.Lock(), []

    def recorder(function, memory, restore) -> Recording:
        overlaps.append(not recording.acquire(blocking=False))
        made = record_on_cpu(function, memory, restore)
        time.sleep(0.01)
        recording.release()
        return made

    monkeypatch.setitem(graph.RECORDERS, "cpu", recorder)
    values = torch.ones(3)
    threads = [threading.Thread(target=record, args=(values.sum, MEMORY)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [False] * 4


def test_a_recording_that_fails_leaves_the_state_as_it_was():
    state = torch.arange(3.0)
    with pytest.raises(RuntimeError, match="cuda_graph"):
        record(lambda: state.add_(float(state.sum())), MEMORY, [state])
    assert state.tolist() == [0, 1, 2]


def test_refused_where_nothing_is_recorded(monkeypatch):
    monkeypatch.delitem(graph.RECORDERS, "cpu")
    with pytest.raises(ValueError, match="cuda_graph: expected False: steps on a cpu are not recorded, got True"):
        random_session(random_model(NANO), cuda_graph=True)
    with pytest.raises(TypeError, match="cuda_graph"):
        random_session(random_model(NANO), cuda_graph="yes")
