# SPDX-License-Identifier: Apache-2.0
"""Sessions in files: the state goes on bit for bit, a replay gives the same video again; other files are refused."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from aapt_fast import PagePool, SessionBatch, StreamModel, StreamSession, WindowRule
from aapt_fast.errors import CheckpointError, PoolExhausted, SessionClosed
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.aapt.sampling import EulerSampler
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.streaming import saved
from aapt_fast.testing.streams import play, random_controls, random_model, random_session
from aapt_fast.testing.wan import TINY, random_wan

pytestmark = pytest.mark.usefixtures("recorded_on_the_cpu")


@pytest.mark.parametrize(("steps", "recorded"), [(0, False), (2, True), (3, False), (6, True)])
def test_a_session_goes_on_from_its_file(model, steps, recorded, tmp_path):
    """In the first frames, where the sink leaves the window of 2, and after it."""
    controls = random_controls(model, 10) if model.control is not None else [None] * 10
    session = random_session(model)
    for control in controls[:steps]:
        session.step(control)
    session.save(tmp_path / "x.safetensors")
    loaded = StreamSession.load(tmp_path / "x.safetensors", model, cuda_graph=recorded, history=2)
    assert (loaded.steps, loaded.seed) == (steps, session.seed)
    assert torch.equal(loaded.frame, session.frame) and torch.equal(loaded.first_frame, session.first_frame)
    for control in controls[steps:]:
        assert torch.equal(loaded.step(control), session.step(control))
    loaded.rewind(loaded.steps - 2)
    loaded.reset()
    assert torch.equal(loaded.step(controls[0]), random_session(model).step(controls[0]))


def test_a_loaded_session_goes_back_to_its_file_at_most(pose_model, tmp_path):
    controls, session = random_controls(pose_model, 6), random_session(pose_model)
    play(session, controls[:4])
    session.save(tmp_path / "x.safetensors")
    loaded = StreamSession.load(tmp_path / "x.safetensors", pose_model, history=9)
    video = play(loaded, controls[4:])[1]
    with pytest.raises(ValueError, match=r"^to_step: expected 4\.\.6, got 3$"):
        loaded.rewind(3)
    loaded.rewind(4)
    assert torch.equal(play(loaded, controls[4:])[1], video)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_session_of_a_wan_transformer(steps, tmp_path):
    model = StreamModel(random_wan(TINY), random_model(NANO).vae, grid=(4, 6))
    sampler = FewStepSampler(steps=(1000, 500), window=WindowRule(2, 2, 2, sink_position="saturated"))
    prompt = torch.randn(5, TINY.text_width, generator=torch.Generator().manual_seed(4))
    session = StreamSession(model, prompt=prompt, sampler=sampler)
    for _ in range(steps):
        session.step()
    session.save(tmp_path / "x.safetensors")
    loaded = StreamSession.load(tmp_path / "x.safetensors", model, sampler=sampler)
    for _ in range(4):
        assert torch.equal(loaded.step(), session.step())


def test_a_replay_gives_the_same_video_and_goes_on(model, tmp_path):
    controls = random_controls(model, 6) if model.control is not None else [None] * 6
    session = random_session(model, replayable=True, history=3)
    session.step(controls[5])
    session.rewind(0)
    video = play(session, controls[:4])[1]
    session.export_replay(tmp_path / "x.safetensors")
    again, taken = StreamSession.from_replay(tmp_path / "x.safetensors", model)
    assert len(taken) == 4 and torch.equal(play(again, taken)[1], video)
    assert torch.equal(again.step(controls[4]), session.step(controls[4]))
    again.export_replay(tmp_path / "x.safetensors")
    assert len(StreamSession.from_replay(tmp_path / "x.safetensors", model)[1]) == 5


def test_the_controls_of_a_loop_ahead_are_those_of_its_videos(pose_model, tmp_path):
    controls, session = random_controls(pose_model, 5), random_session(pose_model, replayable=True)
    loop = session.frames(iter(controls), ahead=True)
    for _ in range(3):
        next(loop)
    session.export_replay(tmp_path / "x.safetensors")
    assert torch.equal(
        torch.stack(StreamSession.from_replay(tmp_path / "x.safetensors", pose_model)[1]), torch.stack(controls[:3])
    )


def test_a_replay_of_steps_in_batches_says_that_it_is_approximate(pose_model, tmp_path):
    pool = PagePool.for_sessions(pose_model, 3)
    sessions = [random_session(pose_model, pool=pool, replayable=True) for _ in range(2)]
    controls = random_controls(pose_model, 3)
    SessionBatch(sessions).step(controls[:2])
    fork = sessions[1].fork()
    for session in (sessions[1], fork):
        session.step(controls[2])
        session.export_replay(tmp_path / "x.safetensors")
        with pytest.warns(UserWarning, match="some steps were taken in batches, so its video comes again up to"):
            again, taken = StreamSession.from_replay(tmp_path / "x.safetensors", pose_model)
        assert torch.equal(torch.stack(taken), torch.stack(controls[1:]))
        torch.testing.assert_close(play(again, taken)[0][:, :, -1:], session.frame)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_fork(pose_model, way):
    controls, session = random_controls(pose_model, 4), random_session(pose_model)
    play(session, controls[:2])
    other = way(session)
    assert torch.equal(other.step(controls[2]), session.fork().step(controls[2])) and session.steps == 2


def rewritten(path, **changes) -> None:
    """Change entries of the JSON in a file."""
    with saved.open_safetensors(path) as file:
        facts = json.loads(file.metadata()["aapt_fast"])
    save_file(load_file(path), path, {"aapt_fast": json.dumps(facts | changes)})


def test_files_that_do_not_fit_are_refused(pose_model, tmp_path):
    state, replay = tmp_path / "state.safetensors", tmp_path / "replay.safetensors"
    session = random_session(pose_model, replayable=True)
    session.step(random_controls(pose_model, 1)[0])
    session.save(state), session.export_replay(replay)
    other = random_model(NANO)
    with torch.no_grad():
        next(other.generator.parameters()).add_(1e-3)
    half = random_model(NANO, dtype=torch.bfloat16)
    save_file({"x": torch.zeros(1)}, tmp_path / "tensors.safetensors")
    (tmp_path / "half.safetensors").write_bytes(state.read_bytes()[:5000])
    for read, mine, wrong in (
        (StreamSession.load, state, replay),
        (StreamSession.from_replay, replay, state),
    ):
        for model in (other, half):
            with pytest.raises(CheckpointError, match=r"expected weights of '.*': the model that wrote it, in"):
                read(mine, model)
        with pytest.raises(CheckpointError, match=r"expected sampler of '.*': EulerSampler.*, got EulerSampler.*"):
            read(mine, pose_model, sampler=EulerSampler(2))
        with pytest.raises(CheckpointError, match=r"expected the .* of a session, got .* of a session"):
            read(wrong, pose_model)
        with pytest.raises(CheckpointError, match="got tensors of something else"):
            read(tmp_path / "tensors.safetensors", pose_model)
        for name in ("half.safetensors", "none.safetensors"):
            with pytest.raises(CheckpointError, match=name):
                read(tmp_path / name, pose_model)
        with pytest.raises(TypeError, match="model: expected StreamModel"):
            read(mine, "mini-person")
        pool = PagePool.for_model(pose_model, 1)
        with pytest.raises(PoolExhausted):
            read(mine, pose_model, pool=pool)
        assert pool.free == pool.available == 1
        rewritten(mine, version=1)
        with pytest.raises(CheckpointError, match="expected version 2 of such files, got 1"):
            read(mine, pose_model)
        for text in ('{"kind": "state of', json.dumps({"kind": saved.STATE if mine is state else saved.REPLAY})):
            save_file(load_file(mine), mine, {"aapt_fast": text})
            with pytest.raises(CheckpointError, match=r"expected the whole (state|replay) of a session, got"):
                read(mine, pose_model)


def test_what_cannot_be_written(pose_model, tmp_path):
    session = random_session(pose_model, replayable=True)
    for write in (session.save, session.export_replay):
        with pytest.raises(ValueError, match=r"path: expected a name that ends in \.safetensors"):
            write(tmp_path / "x.pt")
        with pytest.raises(OSError):
            write(tmp_path / "none" / "x.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="session: expected one opened with replayable=True"):
        random_session(pose_model).export_replay(tmp_path / "x.safetensors")
    with pytest.raises(TypeError, match="replayable: expected bool, got int"):
        random_session(pose_model, replayable=1)
    session.close()
    with pytest.raises(SessionClosed):
        session.save(tmp_path / "x.safetensors")


def test_any_change_of_the_weights_is_another_model(pose_model):
    mine = saved.fingerprint(pose_model)
    assert (
        mine
        == saved.fingerprint(random_model(NANO))
        != saved.fingerprint(random_model(dataclasses.replace(NANO, layers=1)))
    )
    for module in (pose_model.generator, pose_model.vae):
        with torch.no_grad():
            list(module.parameters())[-1].flatten()[0] += 1e-3
        assert saved.fingerprint(pose_model) != mine
        mine = saved.fingerprint(pose_model)
