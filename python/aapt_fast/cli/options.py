# SPDX-License-Identifier: Apache-2.0
"""The options of all commands. Nothing here imports torch: `--help` and mistakes are answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from aapt_fast.cli.bench_options import add_bench, add_system
from aapt_fast.cli.choices import (
    ACTIONS,
    DTYPES,
    HELD_OUT_CLIPS,
    HELD_OUT_FRAMES,
    HELD_OUT_SETS,
    JOINTS,
    MEDLEY,
    OWN,
    PART_FRAMES,
    RECIPES,
    SHARD_GIB,
    meant,
    planned_names,
)
from aapt_fast.cli.option_types import any_path, file_path, integer, number, video_path
from aapt_fast.cli.rank_options import add_ranks
from aapt_fast.cli.serve_options import add_serve
from aapt_fast.models.files.bundled import PRESETS
from aapt_fast.training.own_folder import STAGES

GENERATED_FRAMES = 240
"""Video frames of `generate` without `--frames` and without lengths in a script."""
CACHE = Path("~/.cache/aapt_fast")

Options = Callable[[argparse.ArgumentParser], None]


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="mini-person",
        help="mini-person, mini-anyone, or a file that train exported (default: %(default)s)",
    )
    parser.add_argument(
        "--image",
        default="0",
        help="first picture: a number in the model's gallery (0 to 15 in mini-person, 0 to 7 in mini-anyone), or a "
        "picture file, of which the middle is cropped and resized. For other persons than those of the gallery, "
        "--model mini-anyone is better (default: %(default)s)",
    )
    parser.add_argument(
        "--motion",
        help=f"{' | '.join(ACTIONS)} | {MEDLEY} (the default), or a script like walk:48,wave:72 (video frames each, "
        f"{PART_FRAMES} where none are given); the last motion continues if --frames is longer",
    )
    parser.add_argument(
        "--controls",
        type=file_path,
        metavar="FILE",
        help=f"instead of --motion: .npy or .json with numbers [frames, {JOINTS}, 3]: x and y as fractions 0..1 of "
        "width and height, then the depth in metres (0 at the stage's middle, more is farther away); joints in the "
        "order of aapt_fast.worlds.person.skeleton.JOINTS. The first frame should be near the pose of the picture; "
        "the last is held if --frames is longer",
    )
    parser.add_argument(
        "--frames",
        type=integer,
        help="video frames to make, rounded up to whole steps of 4 (default: those of --controls; the sum of a script "
        f"in which every motion has a length; otherwise {GENERATED_FRAMES})",
    )
    parser.add_argument(
        "--seed",
        type=integer,
        default=0,
        help="of noise and motion; the same seed gives the same video (default: %(default)s)",
    )
    parser.add_argument(
        "--nfe",
        type=integer,
        default=1,
        help="network evaluations per step; more are slower (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu | cuda | cuda:1 ... (default: a GPU where there is one)")
    add_ranks(parser)
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto, the default: bfloat16 where the device computes in it, else float32",
    )
    parser.add_argument(
        "--out",
        type=video_path,
        required=True,
        help="x.mp4, x.gif or a folder of pictures, written as it goes. After Ctrl-C, SIGTERM or SIGHUP the video so "
        "far is kept, beside a file of that name if there is one; the exit status is 130 then",
    )
    parser.add_argument(
        "--scale",
        type=integer,
        default=4,
        help="enlarge the written video by this factor (default: %(default)s)",
    )
    parser.add_argument(
        "--sheet",
        type=file_path,
        metavar="FILE",
        help="also write a picture (.png, .jpg, .webp) of up to twelve frames: controls, truth where known, and video",
    )
    parser.add_argument("--quiet", action="store_true", help="neither progress nor notes on stderr")


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    parser.add_argument(
        "--plan",
        metavar="PRESET",
        help="say how much memory a session needs and whether this machine has it, without loading anything: "
        f"{' | '.join(planned_names())} (default: say what is ready here)",
    )
    with_plan = parser.add_argument_group("with --plan")
    add_system(with_plan)
    with_plan.add_argument(
        "--offload-text",
        action="store_true",
        help="count the weights of the text stream in host memory, as StreamModel(..., offload_text=True) keeps them",
    )


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """Try the kernels on this GPU, time them against torch, remember the right and fast ones.

Every kernel runs in a process of its own with a time limit. From then on a kernel runs by itself on this GPU if its
results are right and it is at least as fast as torch. AAPT_KERNELS still chooses otherwise.

Exit status: 0 every kernel that was tried is right, 1 one is not, 2 a mistake in the arguments, or no GPU."""
    parser.add_argument(
        "--kernels", metavar="NAMES", help="with commas between them (default: all that this GPU can run)"
    )
    parser.add_argument(
        "--shapes",
        metavar="MODEL",
        help=f"model at whose shapes the kernels are timed: {' | '.join(PRESETS)}, a bundled model, or a file that "
        "train exported (default: shapes of several models)",
    )
    parser.add_argument(
        "--json",
        type=file_path,
        metavar="FILE",
        help="file for all that a maintainer needs: machine, build, findings",
    )


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        choices=(*RECIPES, OWN),
        help="person: 16 persons, from nothing; anyone: any person, from --start; rooms: walks through "
        "rooms, from nothing; own: the "
        "videos of --data, from nothing",
    )
    parser.add_argument(
        "--data", type=any_path, metavar="FOLDER", help="videos of the recipe own, with or without controls beside them"
    )
    parser.add_argument("--skip-faults", action="store_true", help="leave out videos of --data that cannot be read")
    parser.add_argument(
        "--out",
        type=any_path,
        required=True,
        help="folder of the run, new or begun before: data, checkpoints, logs, samples",
    )
    parser.add_argument(
        "--start",
        metavar="MODEL",
        help="model that anyone starts from: a bundled one or a file (default: mini-person)",
    )
    parser.add_argument(
        "--codec",
        metavar="VAE",
        help="take this codec: mini-vae, a model, or codec/vae.safetensors of another folder (default: train one)",
    )
    parser.add_argument(
        "--stage", choices=STAGES, action="append", help="only this stage, repeatable (default: all but reconstruction)"
    )
    parser.add_argument(
        "--trial",
        action="store_true",
        help="the same stages with few clips and steps, some minutes on two quiet cores: to see that training "
        "works, in a folder of its own; the model is good for nothing else",
    )
    parser.add_argument("--device", help="cuda | cpu (default: a GPU where there is one)")
    parser.add_argument(
        "--gpus",
        type=integer,
        default=1,
        metavar="N",
        help="share each batch among so many GPUs of this machine, or with --device cpu among so many processes; a run "
        "goes on with any number, but not with 1 after several or several after 1 (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The exit status is 1 if there are faults."
    parser.add_argument("question", choices=("check",), metavar="check", help="decode every video, and list faults")
    parser.add_argument("folder", type=any_path, help="folder that `train own --data` is to be given")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="mini-person, mini-anyone, or a file that train exported (default: mini-person)"
    )
    parser.add_argument(
        "--row",
        action="append",
        default=[],
        metavar="NAME=MODEL[:NFE]",
        help="instead of `model`, and repeatable: several models, or one at several nfe, in one report",
    )
    parser.add_argument(
        "--held-out",
        choices=HELD_OUT_SETS,
        default="gallery",
        help="motions of persons that the model knows, or of strangers; walks through rooms that it knows, or new ones "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--nfe",
        type=integer,
        default=1,
        help="network evaluations per step, of rows that give none (default: %(default)s)",
    )
    parser.add_argument(
        "--clips", type=integer, default=HELD_OUT_CLIPS, help="number of motions (default: %(default)s)"
    )
    parser.add_argument(
        "--frames",
        type=integer,
        default=HELD_OUT_FRAMES,
        help="video frames per clip after the given first one, rounded up to whole steps (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=any_path,
        help="folder for report, CSV, plots and contact sheet; a stopped evaluation resumes there",
    )
    parser.add_argument(
        "--pose-network",
        type=any_path,
        default=CACHE,
        help="folder of the network that reads poses off a video; it is trained once (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="a file of weights, its folder, the folder of a diffusers pipeline, or a bundled model"
    )
    parser.add_argument(
        "--out",
        type=any_path,
        required=True,
        help="a new or empty folder, which appears once all is written and verified",
    )
    parser.add_argument(
        "--config",
        help='settings that the files lack: JSON like {"num_heads": 12}, or a file with it; '
        'for a pipeline {"transformer": {...}, "vae": {...}}',
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read the result again and compare it with the source (default: yes)",
    )
    parser.add_argument(
        "--shard-size",
        type=number,
        default=SHARD_GIB,
        metavar="GIB",
        help="largest file, in GiB; a model of this package stays one file (default: %(default)s)",
    )


COMMANDS: dict[str, tuple[str, Options]] = {
    "generate": ("Stream a video from a first image and a motion, one latent frame at a time.", add_generate),
    "doctor": ("Say whether this machine is ready, what is installed and which kernels are on.", add_doctor),
    "verify": ("Try the kernels on this GPU, and remember which ones are right and fast.", add_verify),
    "train": ("Train a model by one of the recipes; a stopped run resumes.", add_train),
    "data": ("Say what a folder of videos holds, and what cannot be trained on.", add_data),
    "evaluate": ("Measure models against the exact truth: drift, control, sharpness, latency.", add_evaluate),
    "bench": ("Measure this machine, predict what it cannot run, and compare two documents.", add_bench),
    "serve": ("Play a model in the browser, or stream it to programs.", add_serve),
    "convert": ("Convert weights to safetensors that load fast, and verify the result.", add_convert),
}
"""Summary and options of each command; aapt_fast.cli.<command>.run does it."""


class _Version(argparse.Action):
    """`--version`; the version is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import aapt_fast

        print(f"aapt-fast {aapt_fast.__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as all others are: the command, the option, and where its help is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}; see {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the choice that a misspelt one is close to."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            text = f"invalid choice: {value!r}{meant(str(value), choices)} (choose from {', '.join(choices)})"
            raise argparse.ArgumentError(action, text)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Report what is unknown to a command under its name: the parser of all commands would leave it out."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"expected options of {self.prog}, got {' '.join(unknown)}")
        return found, unknown


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line; it puts the command's name into `command`."""
    root = _Parser(prog="aapt-fast", description="Real-time, controllable, streaming video generation.")
    root.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = root.add_subparsers(dest="command", required=True, metavar="command")
    for name, (summary, add_options) in COMMANDS.items():
        add_options(commands.add_parser(name, help=summary, description=summary))
    return root
