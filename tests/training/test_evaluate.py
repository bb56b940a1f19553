# SPDX-License-Identifier: Apache-2.0
"""The yardstick itself: a perfect model scores perfectly, a still one does not, the mirror test tells sides apart."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.training import evaluate as module
from aapt_fast.training.data import make_clip
from aapt_fast.training.evaluate import Group, Row, evaluate, make_group
from aapt_fast.training.plots import UNITS, can_plot
from aapt_fast.training.pose_network import PoseNetwork, PoseNetworkConfig, PoseReader, pose_reader
from aapt_fast.training.recipes import FIRST_FRAMES, GALLERY_CLIPS, HELD_OUT, HELD_OUT_GALLERY, STRANGERS_CLIPS
from aapt_fast.training.step_latency import step_latency
from aapt_fast.worlds.world import clip_seed

TINY = dataclasses.replace(HELD_OUT, clips=2, frames=25, size=32)
TINY_VAE = MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4))


def test_held_out_motions_are_not_in_the_training_data() -> None:
    trained = {clip_seed(s.seed, i) for s in (GALLERY_CLIPS, STRANGERS_CLIPS) for i in range(s.clips)}
    held_out = {clip_seed(s.seed, i) for s in (HELD_OUT, HELD_OUT_GALLERY, FIRST_FRAMES) for i in range(s.clips)}
    assert not trained & held_out
    assert {HELD_OUT.scene(i) for i in range(HELD_OUT.clips)} == set(range(16))


@pytest.fixture(scope="module")
def truth() -> Group:
    """The two clips of TINY, and the same mirrored."""
    return make_group(TINY, range(2))


def test_the_mirrored_truth_starts_at_the_same_picture_and_then_differs(truth: Group) -> None:
    mirrored, _ = truth.mirrored
    assert torch.equal(truth.video[:, :, 0], mirrored[:, :, 0])
    assert (truth.video[:, :, 12:] - mirrored[:, :, 12:]).abs().amax((1, 3, 4)).min() > 0.1


def test_the_mirror_test_tells_the_sides_apart(truth: Group) -> None:
    mirrored, _ = truth.mirrored
    noisy = mirrored + 0.1 * torch.randn_like(mirrored)
    assert module._right_side(noisy, mirrored, truth.video).tolist() == [True, True]
    assert module._right_side(truth.video, mirrored, truth.video).tolist() == [False, False]


def test_mirrored_motions_may_end_before_the_others(pose: PoseReader, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MIRROR_TO", 16)
    report = evaluate([Row("model", nano())], TINY, pose, tmp_path)
    control = {row["what"]: row for row in report.tables["control"]}
    assert all("frame 12" in row for row in control.values()) and make_group(TINY, [0]).mirrored[0].shape[2] == 17
    lines = (tmp_path / "drift.csv").read_text().splitlines()
    names = lines[0].split(",")
    place = names.index("model mirrored control")
    assert lines[17].split(",")[place] != "" and lines[18].split(",")[place] == ""
    assert lines[25].split(",")[names.index("model psnr")] != ""


POSE = PoseNetworkConfig(size=32, widths=(4, 4, 4), clips=4, held_out=2, frames=4, steps=4, batch=4)


@pytest.fixture(scope="module")
def pose(tmp_path_factory: pytest.TempPathFactory) -> PoseReader:
    """Eyes that have hardly learnt anything: enough for everything but the meaning of the numbers."""
    return pose_reader(POSE, tmp_path_factory.mktemp("pose"))


@pytest.fixture(autouse=True)
def few_timed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "step_latency", functools.partial(step_latency, steps=3, warm=1))


class PerfectEyes(PoseReader):
    """Knows the joints of the true videos by heart, and sees all joints of any other video in a corner."""

    def see(self, video: Tensor) -> tuple[Tensor, Tensor]:
        truth = make_group(TINY, range(TINY.clips))
        known = [*zip(truth.video, truth.controls, strict=True), *zip(*truth.mirrored, strict=True)]
        nowhere = torch.zeros(video.shape[2], 19, 2)
        joints = [next((p[..., :2] for true, p in known if torch.equal(true, clip)), nowhere) for clip in video]
        return torch.stack(joints), 100 * video.mean((3, 4)).transpose(1, 2)


def perfect_eyes() -> PoseReader:
    return PerfectEyes(PoseNetwork(POSE.widths), POSE, 0.0)


def nano() -> StreamModel:
    return StreamModel(Generator(NANO).eval(), MiniVAE(TINY_VAE).eval())


def test_a_perfect_model_reaches_the_ceiling(truth: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([truth.video, truth.mirrored[0]])
    monkeypatch.setattr(module, "generate_video", lambda *arguments: next(answers))
    tables = evaluate([Row("model", nano())], TINY, perfect_eyes()).tables
    drift = {row["what"]: row for row in tables["drift"]}
    assert drift["model psnr"]["frame 12"] == 100 and drift["model ssim"]["mean"] == pytest.approx(1)
    assert drift["still psnr"]["frame 12"] < 40
    control = {row["what"]: row["mean"] for row in tables["control"]}
    assert control["codec"] > 10 and control["still"] > 10
    assert {name for name in control if control[name] == 0} == {
        "model", "true frames", "model mirrored", "true frames mirrored"
    }  # fmt: skip
    distances = {row["what"]: row["distance"] for row in tables["frechet"]}
    assert distances["model"] == 0 < min(distances["still"], distances["codec"])
    dynamic = {row["what"]: row for row in tables["dynamic degree"]}
    assert dynamic["model"] == {"what": "model", "frames 1-12": 1, "frames 13-24": 1, "all": 1}
    assert dynamic["still"]["all"] == 0
    assert tables["mirror"] == [{"what": "model: mirrored control followed", "clips": 2, "share": 1.0}]


def test_a_model_that_ignores_the_mirrored_request_is_told_apart(truth: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "generate_video", lambda *arguments: truth.video)
    tables = evaluate([Row("model", nano())], TINY, perfect_eyes()).tables
    assert tables["mirror"][0]["share"] == 0
    control = {row["what"]: row["mean"] for row in tables["control"]}
    assert control["model"] == control["true frames"] == control["true frames mirrored"] == 0
    assert control["model mirrored"] > 1  # pixels


def test_a_real_model_writes_its_report(pose: PoseReader, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = evaluate([Row("model", nano())], TINY, pose, out)
    tables = {f"{title.replace(' ', '_')}.csv" for title in report.tables}
    plots = {f"{metric}.png" for metric in UNITS} if can_plot() else set()
    assert {path.name for path in out.iterdir()} == {"drift.png", "report.md"} | tables | plots
    assert len((out / "drift.csv").read_text().splitlines()) == 1 + TINY.frames
    assert (out / "report.md").read_text() == report.to_markdown()
    assert [row["what"] for row in report.tables["drift"]][:3] == ["model psnr", "model ssim", "model sharpness"]
    assert f"errs by {pose.error:.2f} pixels of 32 on 8 true frames of 2 strangers" in report.notes["control"]


def test_several_rows_share_the_truth(pose: PoseReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    real = make_clip
    monkeypatch.setattr(module, "make_clip", lambda config, clip: rendered.append(clip) or real(config, clip))
    model = nano()
    twin = StreamModel(Generator(NANO).eval(), MiniVAE(TINY_VAE).eval())
    twin.generator.load_state_dict(model.generator.state_dict())
    twin.vae.load_state_dict(model.vae.state_dict())
    with torch.no_grad():  # NANO repeats the recycled frame at first: let the noise count
        for generator in (model.generator, twin.generator):
            generator.skip.copy_(torch.tensor([0.5, 0.5]))
    rows = [Row("one", model), Row("same", twin), Row("two", model, nfe=2)]
    tables = evaluate(rows, dataclasses.replace(TINY, clips=3), pose, tmp_path / "out", group=2).tables
    assert rendered == [0, 1, 2]
    drift = {row.pop("what"): row for row in tables["drift"]}
    assert drift["one psnr"] == drift["same psnr"] != drift["two psnr"]
    assert [row["what"] for row in tables["summary"]] == ["one", "same", "two", "codec", "still"]
    assert [row["nfe"] for row in tables["summary"]] == [1, 1, 2, "-", "-"]
    assert [row["clips"] for row in tables["mirror"]] == [3, 3, 3]
    assert [row["what"] for row in tables["frechet"]] == [
        "one",
        "same",
        "two",
        "codec",
        "still",
        "true frames mirrored",
    ]
    with Image.open(tmp_path / "out" / "drift.png") as picture:
        assert picture.size == (4 * 32, (2 + 3) * (2 + 2) * 32)  # skeleton, truth and 3 rows; 2 clips, then mirrored


def test_codecs_that_differ_are_baselines_of_their_own(pose: PoseReader) -> None:
    rows = [Row("a", nano()), Row("b", nano())]
    rows.append(Row("c", StreamModel(Generator(NANO).eval(), rows[0].model.vae)))
    tables = evaluate(rows, TINY, pose).tables
    assert [row["what"] for row in tables["summary"]] == ["a", "b", "c", "codec of a", "codec of b", "still"]


def test_what_cannot_be_evaluated_is_refused(pose: PoseReader) -> None:
    without_poses = StreamModel(Generator(NANO_TEXT), MiniVAE(TINY_VAE))
    larger = StreamModel(Generator(dataclasses.replace(NANO, grid=(8, 8))), MiniVAE(TINY_VAE))
    for rows, config, message in (
        (
            [Row("model", without_poses)],
            TINY,
            r"model: expected a control of shape \(19, 3\), .* person, got None",
        ),
        ([Row("model", larger)], TINY, r"model: expected video of \(32, 32\) pixels, got \(64, 64\)"),
        ([Row("x", nano()), Row("x", nano())], TINY, "rows: expected distinct names other than .*, got x, x"),
        ([Row("codec", nano())], TINY, "rows: expected distinct names other than true frames, codec, still"),
        ([Row("x", nano()), Row("x mirrored", nano())], TINY, "rows: expected distinct names"),
        ([], TINY, "rows: expected at least one"),
        ([Row("model", nano(), nfe=0)], TINY, "nfe: expected at least 1"),
        ([Row("model", nano())], dataclasses.replace(TINY, frames=9), "frames: expected more than 12 video frames"),
        (
            [Row("model", larger)],
            dataclasses.replace(TINY, size=64),
            "reader: expected a network for 64 pixels",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(rows, config, pose)


def test_a_stopped_evaluation_resumes_after_the_last_whole_group(
    pose: PoseReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, config = [Row("model", nano())], dataclasses.replace(TINY, frames=17)
    whole = evaluate(rows, config, pose, tmp_path / "at once", group=1)
    measured: list[int] = []
    real = module.make_group

    def stopped(config, clips):
        measured.append(clips.start)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return real(config, clips)

    monkeypatch.setattr(module, "make_group", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(rows, config, pose, tmp_path / "out", group=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["measured.pt"]
    resumed = evaluate(rows, config, pose, tmp_path / "out", group=1)
    assert measured == [0, 1, 1]
    for title in ("drift", "control", "frechet", "dynamic degree", "mirror"):
        assert resumed.tables[title] == whole.tables[title]
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("out", "at once")]
    assert files[0] == files[1] and "measured.pt" not in files[0]


def test_measurements_of_other_weights_are_not_resumed(pose: PoseReader, tmp_path: Path) -> None:
    rows = [Row("model", nano())]
    kept = module._Kept(tmp_path / "measured.pt", rows, TINY, pose, 4)
    kept.save(module.Measurements(nfe={"model": 1}), [], 1)
    assert module._Kept(tmp_path / "measured.pt", rows, TINY, pose, 4).load()[2] == 1
    others = (
        ([dataclasses.replace(rows[0], nfe=2)], TINY, pose, 4),
        (rows, dataclasses.replace(TINY, seed=9), pose, 4),
        (rows, TINY, None, 4),
        (rows, TINY, pose, 2),
    )
    assert all(module._Kept(tmp_path / "measured.pt", *other).load()[2] == 0 for other in others)
    with torch.no_grad():
        rows[0].model.generator.skip += 1e-6
    assert module._Kept(tmp_path / "measured.pt", rows, TINY, pose, 4).load()[2] == 0
