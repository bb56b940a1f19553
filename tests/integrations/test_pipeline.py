# SPDX-License-Identifier: Apache-2.0
"""`AAPTPipeline`: the frames of a session, in the formats of diffusers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor

import aapt_fast
from aapt_fast import AAPTPipeline, FirstFrame, StreamSession
from aapt_fast.testing.streams import STREAMS, random_model

PAGE = Path(__file__).parents[2] / "docs/how-to/use-as-a-diffusers-pipeline.md"


@pytest.fixture(scope="module")
def pipe() -> AAPTPipeline:
    return AAPTPipeline.from_pretrained("mini-person")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_uint8(video: Tensor) -> Tensor:
    """A video of `output_type="pt"` -> uint8 [T, H, W, 3]."""
    return (video[0] * 255).round().byte().permute(0, 2, 3, 1)


def streamed(pipe: AAPTPipeline, first: FirstFrame, source: object, seed: int, steps: int) -> Tensor:
    with StreamSession(pipe.model, first, seed=seed) as session:
        return torch.cat(list(session.frames(source, steps)))


# ---- the same video as a session ----


def test_frames_are_those_of_a_session_bit_for_bit(pipe):
    first = pipe.gallery[3]
    expected = streamed(pipe, first, pipe.model.world.player(first, "wave", 7), 7, steps=3)
    made = pipe(first, "wave", num_frames=10, generator=seeded(7), output_type="pt").frames
    assert made.dtype == torch.float32 and torch.equal(as_uint8(made), expected[:10])
    assert torch.equal(made[0, 0], expected[0].permute(2, 0, 1) / 255)


def test_a_track_of_poses_is_followed_and_its_last_pose_held(pipe):
    first = pipe.gallery[0]
    track = pipe.model.world.player(first, "kick").next(6)
    held = torch.cat([track, track[-1:], track[-1:]])
    expected = streamed(pipe, first, held.split(4), 0, steps=2)
    for pose in (track, track.numpy(), track.tolist()):
        assert torch.equal(as_uint8(pipe(pose=pose, generator=seeded(0), output_type="pt").frames), expected[:6])


def test_more_evaluations_are_those_of_the_sampler(pipe):
    first, sampler = pipe.gallery[0], aapt_fast.EulerSampler(num_inference_steps=2)
    with StreamSession(pipe.model, first, sampler=sampler) as session:
        expected = torch.cat(list(session.frames(pipe.model.world.player(first, "walk"), 1)))
    made = pipe(motion="walk", num_frames=4, num_inference_steps=2, generator=seeded(0), output_type="pt")
    assert torch.equal(as_uint8(made.frames), expected)


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63 - 1])
def test_the_seed_of_a_generator_is_that_of_a_session(pipe, seed):
    first = pipe.gallery[0]
    expected = streamed(pipe, first, pipe.model.world.player(first, "idle", seed), seed, steps=1)
    made = pipe(motion="idle", num_frames=4, generator=seeded(seed), output_type="pt")
    assert torch.equal(as_uint8(made.frames), expected)


def test_a_generator_gives_the_same_video_again_and_torchs_own_another(pipe):
    def make(generator: torch.Generator | None) -> Tensor:
        return pipe(motion="walk", num_frames=4, generator=generator, output_type="pt").frames

    generator = seeded(1)
    assert torch.equal(make(generator), make(generator))
    torch.manual_seed(5)
    one, two = make(None), make(None)
    torch.manual_seed(5)
    assert torch.equal(make(None), one) and not torch.equal(one, two)


# ---- pictures in, videos out ----


def test_output_types_are_those_of_diffusers(pipe):
    def make(kind: str) -> object:
        return pipe(motion="jump", num_frames=5, generator=seeded(2), output_type=kind).frames

    video = make("pt")
    assert video.shape == (1, 5, 3, 96, 96) and video.min() >= 0 and 0.5 < video.max() <= 1
    for kind, known in (("np", make("np")), ("pil", make("pil"))):
        expected = VideoProcessor().postprocess_video(2 * video.transpose(1, 2) - 1, output_type=kind)
        if kind == "np":
            assert known.shape == (1, 5, 96, 96, 3) and known.dtype == numpy.float32
            numpy.testing.assert_allclose(known, expected, atol=1e-6)
        else:
            assert len(known) == 1 and all(isinstance(picture, Image.Image) for picture in known[0])
            assert all(numpy.array_equal(*pair) for pair in zip(known[0], expected[0], strict=True))


def test_the_default_is_the_first_picture_of_the_gallery_and_a_medley(pipe):
    first = pipe.gallery[0]
    expected = streamed(pipe, first, pipe.model.world.player(first, "medley", 4), 4, steps=1)
    assert torch.equal(as_uint8(pipe(num_frames=4, generator=seeded(4), output_type="pt").frames), expected)


def test_a_picture_of_another_size_is_cropped_and_scaled(pipe):
    picture = Image.fromarray(pipe.gallery[2].image).resize((200, 150))
    first = FirstFrame(aapt_fast.fit_picture(picture, 96, 96))
    expected = streamed(pipe, first, pipe.model.world.player(first, "walk"), 0, steps=1)
    made = pipe(picture, "walk", num_frames=4, generator=seeded(0), output_type="pt")
    assert torch.equal(as_uint8(made.frames), expected)


# ---- callbacks ----


def test_callbacks_see_every_step_and_may_end_the_video(pipe):
    seen = []

    def watch(caller, step, timestep, values):
        seen.append((step, timestep, values["frames"]))
        caller._interrupt = step == 1
        return values

    made = pipe(motion="walk", num_frames=12, generator=seeded(0), output_type="pt", callback_on_step_end=watch)
    assert [(step, timestep) for step, timestep, _ in seen] == [(0, 0), (1, 0)]
    assert torch.equal(as_uint8(made.frames), torch.cat([frames for *_, frames in seen]))
    assert pipe(motion="walk", num_frames=12, output_type="pt").frames.shape[1] == 12  # interrupted no more


def test_an_error_of_a_callback_leaves_the_pipeline_usable(pipe):
    def fail(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pipe(motion="walk", num_frames=4, callback_on_step_end=fail)
    assert pipe(motion="walk", num_frames=4, output_type="pt").frames.shape[1] == 4


# ---- files ----


def test_a_saved_pipeline_makes_the_same_video(pipe, tmp_path):
    folder = tmp_path / "new" / "person"
    pipe.save_pretrained(folder)
    again = AAPTPipeline.from_pretrained(folder)
    assert len(again.gallery) == 16 and again.model.has_world
    made = [
        each(each.gallery[5], "bow", num_frames=4, generator=seeded(0), output_type="pt").frames
        for each in (pipe, again)
    ]
    assert torch.equal(*made)
    again.save_pretrained(folder)  # over itself, the gallery as well
    assert len(AAPTPipeline.from_pretrained(folder).gallery) == 16


def test_a_pipeline_of_a_model_alone_has_no_gallery(pipe, tmp_path):
    bare = AAPTPipeline(pipe.model)
    with pytest.raises(ValueError, match="image: expected a picture: this model has no gallery, got None"):
        bare(motion="walk")
    bare.save_pretrained(tmp_path / "bare")
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["model.safetensors"]


# ---- mistakes ----

WRONG = [
    (dict(output_type="mp4"), ValueError, "output_type: expected pil | np | pt, got mp4"),
    (dict(motion="swim"), ValueError, "motion: expected idle | .*, got swim"),
    (dict(motion=3), TypeError, "motion: expected str, got int"),
    (dict(num_frames=0), ValueError, "num_frames: expected at least 1 video frame, got 0"),
    (dict(num_frames=4.0), TypeError, "num_frames: expected an integer, got float"),
    (dict(num_inference_steps=0), ValueError, "num_inference_steps: expected 1 to"),
    (dict(generator=0), TypeError, "generator: expected Generator, got int"),
    (dict(generator=[torch.Generator()]), TypeError, "generator: expected Generator, got list"),
    (dict(image="me.jpg"), TypeError, "image: expected a picture"),
    (dict(image=torch.zeros(4, 96, 96)), ValueError, r"image: expected shape \[3, H, W\], got \[4, 96, 96\]"),
    (dict(pose=torch.zeros(4, 17, 3)), ValueError, r"pose: expected shape \[T, 19, 3\], got \[4, 17, 3\]"),
    (dict(pose=torch.zeros(0, 19, 3)), ValueError, "pose: expected at least one video frame"),
    (dict(pose=torch.full((5, 19, 3), 50.0)), ValueError, "pose: "),
    (dict(pose=torch.zeros(4, 19, 3), motion="walk"), ValueError, "motion: expected None beside pose, got walk"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    WRONG,
    ids=[f"{number}, {next(iter(each[0]))}" for number, each in enumerate(WRONG)],
)
def test_mistakes_name_argument_expected_and_got_before_the_first_step(pipe, arguments, error, message):
    steps: list[int] = []
    with pytest.raises(error, match=message):
        pipe(**arguments, callback_on_step_end=lambda _, step, *__: steps.append(step))
    assert steps == []


def test_a_first_frame_with_a_control_has_to_have_the_size_of_the_model(pipe):
    first = FirstFrame(numpy.zeros((48, 48, 3), numpy.uint8), control=pipe.gallery[0].control)
    with pytest.raises(ValueError, match="image: expected 96 x 96 pixels of a FirstFrame with a control"):
        pipe(first, "walk")


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="model: expected StreamModel, got str"):
        AAPTPipeline("mini-person")
    with pytest.raises(ValueError, match="model: expected a model that poses control, as mini-person"):
        AAPTPipeline(random_model(STREAMS["text and maps"]))


def test_the_pipeline_needs_no_diffusers():
    program = (
        "import sys; sys.modules['diffusers'] = None; import aapt_fast; "
        "aapt_fast.AAPTPipeline.from_pretrained('mini-person')(motion='walk', num_frames=1)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_page_about_the_pipeline_runs(tmp_path, monkeypatch):
    """docs/how-to/use-as-a-diffusers-pipeline.md, its blocks one after the other."""
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), scope)
    assert Image.open(tmp_path / "wave.gif").n_frames == len(scope["frames"]) == 24
    assert scope["shown"] == [4] * 3 and len(scope["followed"]) == 12
