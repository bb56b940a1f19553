# SPDX-License-Identifier: Apache-2.0
"""Mistakes that are found without torch, whose import takes seconds: names, numbers, files and places of results.

Nothing here is written, and what a check reads the command reads again. NumPy and Pillow are imported where they are
needed, so that `--help` does not wait for them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aapt_fast.cli.absent import require_there
from aapt_fast.cli.choices import (
    ACTIONS,
    DEFAULT_START,
    FEWEST_STEPS,
    FRAMES_PER_STEP,
    KERNELS,
    LEAST_FRAMES,
    MEDLEY,
    MODEL_NAMES,
    OWN,
    SIDE_MULTIPLE,
    STARTED_RECIPES,
    WORLD,
    meant,
    planned_names,
)
from aapt_fast.cli.options import GENERATED_FRAMES
from aapt_fast.errors import require, require_seed
from aapt_fast.limits import require_empty_folder, require_file_target, require_folder
from aapt_fast.media.video_target import check_video_target, require_room
from aapt_fast.models.evaluations import MOST_EVALUATIONS
from aapt_fast.models.files.bundled import PRESETS, bundled_models, bundled_vaes
from aapt_fast.models.files.find import model_path, own_model_path, require_path, weight_file
from aapt_fast.models.files.gallery import Gallery, read_gallery
from aapt_fast.models.files.outline import Outline, read_outline
from aapt_fast.models.files.recognise import CONVERTED, PIPELINE, PRESET, VAE, recognise, refusal
from aapt_fast.models.files.recognise import OWN as OWN_MODEL
from aapt_fast.training.own_folder import TRIAL, require_own_folder, require_report_folder, require_same_note

if TYPE_CHECKING:
    from aapt_fast.worlds.world import Part

SHEET_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
GIB = 1 << 30


def check(arguments: argparse.Namespace) -> None:
    """Raise ValueError or OSError, naming the option, for a mistake in the arguments of a command."""
    checks: dict[str, Callable[[argparse.Namespace], None]] = {
        "generate": _check_generate,
        "doctor": _check_doctor,
        "train": _check_train,
        "evaluate": _check_evaluate,
        "bench": _check_bench,
        "convert": _check_convert,
        "verify": _check_verify,
        "serve": _check_serve,
    }
    if arguments.command in checks:
        checks[arguments.command](arguments)


def _check_generate(arguments: argparse.Namespace) -> None:
    from aapt_fast.worlds.script import read_script

    both = arguments.motion is not None and arguments.controls is not None
    require(not both, "--controls", "either --motion or --controls", "both")
    require_model(arguments.model, "--model")
    gallery = read_gallery(arguments.model)
    script: tuple[Part, ...] | None = None
    if gallery is None or gallery.world == WORLD:  # the motions of another world are not known here
        script = read_script(MEDLEY if arguments.motion is None else arguments.motion, ACTIONS, "--motion")
    if arguments.frames is not None:
        require(arguments.frames >= 1, "--frames", "at least 1", arguments.frames)
        require(arguments.frames < 2**31, "--frames", "less than 2^31", arguments.frames)
    if arguments.device is not None:
        known = re.fullmatch(r"cpu|cuda(:\d+)?", arguments.device) is not None
        require(known, "--device", "cpu, cuda or cuda:N", arguments.device or "an empty text")
    require_seed(arguments.seed)
    expected = f"1 to {MOST_EVALUATIONS} evaluations per step"
    require(1 <= arguments.nfe <= MOST_EVALUATIONS, "--nfe", expected, arguments.nfe)
    require(arguments.scale >= 1, "--scale", "at least 1", arguments.scale)
    if arguments.sheet is not None:
        check_sheet_target(arguments.sheet)
    check_video_target(arguments.out, "--out")
    _check_fit(arguments, script)
    check_image(arguments.image, gallery)


def _check_fit(arguments: argparse.Namespace, script: tuple[Part, ...] | None) -> None:
    """Check the file of `--controls`; whether it, the video and `--gpus` fit model, machine and format."""
    from aapt_fast.cli.pose_file import read_poses, require_poses_of

    poses = None if arguments.controls is None else read_poses(arguments.controls)
    outline = read_outline(model_path(arguments.model, "--model"))
    _check_ranks(arguments, arguments.model, outline)
    if outline is None:
        return
    if poses is not None:
        require_poses_of(outline.joints, poses)
    if script is not None:
        steps = -(-video_frames(arguments.frames, script, poses) // FRAMES_PER_STEP)
        require_room(arguments.out, FRAMES_PER_STEP * steps, outline.size, arguments.scale)


def _check_ranks(arguments: argparse.Namespace, model: str, outline: Outline | None) -> None:
    """Check whether `--gpus` fits the model, of this outline, and `--device`."""
    require(arguments.gpus >= 1, "--gpus", "at least 1", arguments.gpus)
    if arguments.gpus > 1:
        expected = "cpu or cuda with several --gpus"
        require(arguments.device in (None, "cpu", "cuda"), "--device", expected, arguments.device)
    if outline is not None:
        divides = outline.heads % arguments.gpus == 0
        require(divides, "--gpus", f"a number that divides {outline.heads} heads of {model}", arguments.gpus)


def _check_doctor(arguments: argparse.Namespace) -> None:
    for name in ("resolution", "window", "dtype"):
        given = getattr(arguments, name)
        require(given is None or arguments.plan is not None, f"--{name}", "--plan PRESET beside it", "none")
    alone = arguments.offload_text and arguments.plan is None
    require(not alone, "--offload-text", "--plan PRESET beside it", "none")
    if arguments.plan is not None:
        _require_one_of("--plan", arguments.plan, planned_names())
    _check_system(arguments, arguments.plan)


def _check_system(arguments: argparse.Namespace, preset: str | None) -> None:
    """Check the options that change the preset, or bundled model, `preset`."""
    past = arguments.window is None or arguments.window >= 1
    require(past, "--window", "at least 1 past frame", arguments.window)
    size = parse_size(arguments.resolution)
    if size is None:
        return
    for side, length in zip(("width", "height"), size, strict=True):
        fits = length > 0 and length % SIDE_MULTIPLE == 0
        require(fits, f"--resolution {side}", f"a positive multiple of {SIDE_MULTIPLE}", length)
    outline = read_outline(bundled_models()[preset]) if preset in bundled_models() else None
    if outline is not None:
        height, width = outline.size
        expected = f"{width}x{height}, that of the bundled {preset}"
        require(size == (width, height), "--resolution", expected, arguments.resolution)


def _check_train(arguments: argparse.Namespace) -> None:
    require(arguments.gpus >= 1, "--gpus", "at least 1", arguments.gpus)
    require(arguments.device in (None, "cuda", "cpu"), "--device", "cuda or cpu", arguments.device)
    own = arguments.recipe == OWN
    require(own or arguments.data is None, "--data", f"none for the recipe {arguments.recipe}", arguments.data)
    require(own or not arguments.skip_faults, "--skip-faults", f"the recipe {OWN} beside it", arguments.recipe)
    require(not own or arguments.data is not None, "--data", "a folder of videos", None)
    if own:
        require(arguments.data.is_dir(), "--data", "a folder that exists", arguments.data)
    if arguments.start is not None:
        starts = arguments.recipe in STARTED_RECIPES
        require(starts, "--start", "none for a recipe that begins from nothing", arguments.start)
        require_model(arguments.start, "--start")
    if arguments.codec is not None:
        starts = arguments.recipe in STARTED_RECIPES
        require(not starts, "--codec", "none for a recipe that takes that of its start", arguments.codec)
        if arguments.codec not in bundled_vaes():
            file = model_path(arguments.codec, "--codec")
            if recognise(file).kind not in (OWN_MODEL, VAE):
                raise refusal(file, "a codec of this package, or a model with one")
    require_folder("--out", arguments.out)
    require_own_folder("--out", arguments.out)
    name = MODEL_NAMES.get(arguments.recipe, OWN) + (TRIAL if arguments.trial else "")
    start = arguments.start or (DEFAULT_START if arguments.recipe in STARTED_RECIPES else None)
    require_same_note("--out", arguments.out, name, start)


def _check_evaluate(arguments: argparse.Namespace) -> None:
    enough = f"at least {LEAST_FRAMES}, for the mirror test"
    require(arguments.frames >= LEAST_FRAMES, "--frames", enough, arguments.frames)
    require(arguments.clips >= 1, "--clips", "at least 1", arguments.clips)
    require(arguments.nfe >= 1, "--nfe", "at least 1 evaluation per step", arguments.nfe)
    require(arguments.model is None or not arguments.row, "--row", "either a model or --row", "both")
    if arguments.model is not None:
        require_model(arguments.model, "model")
    for text in arguments.row:
        _, source, nfe = parse_row(text, arguments.nfe)
        require(nfe >= 1, "--row", "at least 1 evaluation per step", text)
        require_model(source, "--row")
    require_folder("--pose-network", arguments.pose_network.expanduser())
    if arguments.out is not None:
        require_folder("--out", arguments.out)
        require_report_folder("--out", arguments.out)


def _check_bench(arguments: argparse.Namespace) -> None:
    if arguments.question == "compare":
        for place in ("first", "second"):
            path = getattr(arguments, place)
            require_there(place, "a file", path)
            require(not os.path.isdir(path), place, "a file", f"the folder {path}")
    elif arguments.question != "scaling":
        _check_measured(arguments)
        if arguments.question == "frame":
            require(arguments.gpus >= 1, "--gpus", "at least 1", arguments.gpus)
            _require_one_of("--preset", arguments.preset, PRESETS)
            _check_system(arguments, arguments.preset)
    _check_file_target(arguments.json, "--json")


def _check_measured(arguments: argparse.Namespace) -> None:
    require(arguments.device in (None, "cuda", "cpu"), "--device", "cuda or cpu", arguments.device)
    require(arguments.target > 0, "--target", "a positive number of seconds", arguments.target)
    require(arguments.steps >= FEWEST_STEPS, "--steps", f"at least {FEWEST_STEPS}", arguments.steps)
    require(arguments.limit > 0, "--limit", "a positive number of seconds", arguments.limit)
    told = arguments.json is not None and str(arguments.json) == "/dev/stdout"
    require(not told, "--json", "a file", "/dev/stdout, whose last line is that document already")


def _check_verify(arguments: argparse.Namespace) -> None:
    if arguments.shapes is not None and arguments.shapes not in PRESETS:
        own_model_path(arguments.shapes, "--shapes", PRESETS)
    if arguments.kernels is not None:
        for name in arguments.kernels.split(","):
            got = (name or "an empty name") + meant(name, KERNELS)
            require(name in KERNELS, "--kernels", f"some of {', '.join(KERNELS)}", got)
    _check_file_target(arguments.json, "--json")


def _check_serve(arguments: argparse.Namespace) -> None:
    from aapt_fast.cli.serve_settings import check_serve, models_of

    for model in models_of(arguments):
        require_model(model, "--model")
        _check_ranks(arguments, model, read_outline(model_path(model, "--model")))
    check_serve(arguments)


def _check_convert(arguments: argparse.Namespace) -> None:
    fits = 1 <= arguments.shard_size * GIB < float("inf")
    require(fits, "--shard-size", "a positive number of GiB", arguments.shard_size)
    read_json_option(arguments.config, "--config")
    require_path("source", arguments.source)
    if not os.path.exists(arguments.source) and arguments.source not in bundled_models():
        require_no_preset(arguments.source, "source")
        raise refusal(arguments.source, "a file or folder of weights")
    _check_source(bundled_models().get(arguments.source, Path(arguments.source)))
    require_folder("--out", arguments.out)
    require_empty_folder("--out", arguments.out)


def _check_source(source: Path) -> None:
    """Raise CheckpointError for a source of `convert` that is recognised as something without weights to convert."""
    if source.is_dir() and recognise(source).kind == PIPELINE:
        return
    file = weight_file(source)
    if recognise(file).kind not in CONVERTED:
        raise refusal(file, "weights of a Wan transformer, a Wan VAE or a model of this package")


# ---- parts that commands share, or read again ----


def video_frames(given: int | None, script: tuple[Part, ...], poses: Sized | None) -> int:
    """Video frames of `generate`: those of `--frames`, else of the poses, else of the script. Raises for too many."""
    from aapt_fast.worlds.script import script_frames

    if given is None:
        given = (script_frames(script) or GENERATED_FRAMES) if poses is None else len(poses)
    require(given < 2**31, "--motion", "less than 2^31 video frames", given)
    return given


def _require_one_of(argument: str, name: str, names: Sequence[str]) -> None:
    require(name in names, argument, " | ".join(names), f"{name}{meant(name, names)}")


def require_model(name: str, argument: str) -> None:
    """Raise ValueError or CheckpointError for a name, file or folder that is no model of this package."""
    require_no_preset(name, argument)
    bundled = bundled_models()
    misspelt = "" if os.path.exists(name) or name in bundled else meant(name, bundled)
    require(not misspelt, argument, f"{' | '.join(bundled)}, or a file that train exported", f"{name}{misspelt}")
    own_model_path(name, argument)


def require_no_preset(name: str, argument: str) -> None:
    """Raise ValueError for the name of a preset, which has random weights, unless it is that of a bundled model."""
    expected = f"a model with trained weights ({', '.join(bundled_models())}, or a file)"
    require(
        recognise(name).kind != PRESET,
        argument,
        expected,
        f"{name}, a preset with random weights for `aapt-fast bench frame` only",
    )


def _check_file_target(path: Path | None, argument: str) -> None:
    """Raise ValueError for a folder, OSError if files cannot be made in the file's folder."""
    if path is not None:
        require_file_target(argument, path)


def check_sheet_target(path: Path) -> None:
    """Raise ValueError for another ending or a folder, OSError if files cannot be made in the file's folder."""
    expected = f"a name ending in {', '.join(SHEET_ENDINGS[:-1])} or {SHEET_ENDINGS[-1]}"
    require(path.suffix.lower() in SHEET_ENDINGS, "--sheet", expected, path)
    _check_file_target(path, "--sheet")


def check_image(image: str, gallery: Gallery | None) -> None:
    """Raise ValueError unless `image` is a number in the gallery of the model, or a picture file."""
    from aapt_fast.media.pictures import read_picture

    count = 0 if gallery is None else len(gallery.entries)
    number = f"a gallery number 0..{count - 1} or a picture file"
    expected = number if count else "a picture file: the model has no gallery"
    if is_number(image):
        require(len(image) < 10 and int(image) < count, "--image", expected, image)
    else:
        require_there("--image", expected, image)
        read_picture(image, "--image", expected)


def is_number(image: str) -> bool:
    """True if `--image` is meant as a number of the gallery."""
    return image.isascii() and image.isdecimal()


def parse_row(text: str, nfe: int) -> tuple[str, str, int]:
    """Name, model and evaluations per step of a row `NAME=MODEL[:NFE]`, `nfe` where it gives none."""
    name, equals, source = text.partition("=")
    before, colon, last = source.rpartition(":")
    if colon and last.isdecimal():
        source, nfe = before, int(last)
    require(bool(name and equals and source), "--row", "NAME=MODEL or NAME=MODEL:NFE", text)
    return name, source, nfe


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(width, height) in pixels of `--resolution`, None without it."""
    if text is None:
        return None
    width, _, height = text.partition("x")
    require(width.isdecimal() and height.isdecimal(), "--resolution", "WIDTHxHEIGHT like 736x416", text)
    return int(width), int(height)


def read_json_option(text: str | None, argument: str) -> Mapping[str, Any] | None:
    """The JSON object in `text`, or in the file of that name; None for None."""
    if text is None:
        return None
    is_file = not text.lstrip().startswith("{")
    if is_file:
        require_there(argument, "a JSON object or a file with one", text)
    where = f"the file {text}" if is_file else "this text"
    try:
        content = json.loads(Path(text).read_text(encoding="utf-8") if is_file else text)
    except OSError as error:
        got = f"{where}, which cannot be read: {error.strerror}"
        raise ValueError(f"{argument}: expected a JSON object or a file with one, got {got}") from error
    except ValueError as error:
        got = f"{where}, which is no JSON: {error}"
        raise ValueError(f"{argument}: expected a JSON object or a file with one, got {got}") from error
    require(isinstance(content, dict), argument, "a JSON object", f"{type(content).__name__} in {where}")
    return dict(content)
