# SPDX-License-Identifier: Apache-2.0
"""Time of a step of other people's pipelines, by the protocol and in the document of this folder.

    python -m bench.time_pipeline --out F --video-frames 12 \\
        theirs=their_pipeline:open_stream ours=my_pipeline:open_stream

Every NAME=MODULE:FUNCTION is a function in a module that Python finds (the present folder comes first). Called once
without arguments it loads what it needs and returns a step: a function without arguments that makes the next
`--video-frames` frames. Pipelines take their steps in turn; the first named is the baseline of the others. A step has
ended when the GPU, if there is one, has nothing left to do. A pipeline that fails is noted and the others go on; the
exit status is then 1.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable

import torch

from aapt_fast.errors import require
from aapt_fast.profiling.document import Document, result
from aapt_fast.profiling.timing import Sample
from bench.harness.program import finish, open_document, parser

Step = Callable[[], object]
TIMER = "wall clock of a step, until the GPU has nothing left to do"


def open_pipeline(place: str) -> Step:
    """Call MODULE:FUNCTION for its step. Raises ValueError for a name of another form and for what is no step."""
    module, _, function = place.partition(":")
    require(bool(module) and function.isidentifier(), "pipeline", "MODULE:FUNCTION", place)
    step = getattr(importlib.import_module(module), function)()
    require(callable(step), f"pipeline {place}", "to get a function without arguments", type(step).__name__)
    return step


def timed(step: Step) -> float:
    """Take one step; returns its milliseconds."""
    begun = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun)


def measure(document: Document, pipelines: dict[str, Step], *, warm_up: int, steps: int) -> dict[str, Sample]:
    """Time steps of all pipelines in turn; one that fails is noted in the document and takes no more part."""
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for number in range(warm_up + steps):
        for name in list(times) if number % 2 else list(times)[::-1]:
            try:
                milliseconds = timed(pipelines[name])
            except Exception as error:
                del times[name]
                document.fail(f"pipeline/{name}", name, error)
                continue
            if number >= warm_up:
                times[name].append(milliseconds)
    return {name: Sample(tuple(values), None, TIMER) for name, values in times.items()}


def report(document: Document, samples: dict[str, Sample], video_frames: int) -> None:
    """Add one result per pipeline; the first is the baseline."""
    for name, sample in samples.items():
        baseline = next(iter(samples))
        entry = result(
            f"pipeline/{name}",
            sample,
            name,
            baseline=baseline,
            ratio=sample.times(samples[baseline]),
            video_frames=video_frames,
            video_fps=1e3 * video_frames / sample.p50,
        )
        document.add("results", entry)
        fps = f"{entry['video_fps']:.1f} video frames per second"
        print(f"{name}: p50 {sample.p50:.2f} ms, p95 {entry['p95_ms']:.2f}, {fps}, ratio {entry['ratio']:.2f}")


def main(words: list[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("pipelines", nargs="+", metavar="NAME=MODULE:FUNCTION")
    command.add_argument("--video-frames", type=int, required=True, help="that one step makes")
    command.add_argument("--warm-up", type=int, default=5, help="steps that are not counted (default %(default)s)")
    command.add_argument("--steps", type=int, default=50, help="steps of each pipeline (default %(default)s)")
    arguments = command.parse_args(words)
    places = dict(each.partition("=")[::2] for each in arguments.pipelines)
    if len(places) < len(arguments.pipelines) or not all(places.values()):
        command.error("pipelines: expected NAME=MODULE:FUNCTION, every name once")
    for name, least in (("video_frames", 1), ("warm_up", 0), ("steps", 1)):
        if getattr(arguments, name) < least:
            command.error(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(arguments, name)}")

    sys.path.insert(0, os.getcwd())
    document = open_document(arguments.out)
    pipelines = {}
    for name, place in places.items():
        try:
            pipelines[name] = open_pipeline(place)
        except Exception as error:
            document.fail(f"pipeline/{name}", name, error)
    document.note_clocks("before pipelines")
    samples = measure(document, pipelines, warm_up=arguments.warm_up, steps=arguments.steps)
    document.note_clocks("after pipelines")
    report(document, samples, arguments.video_frames)
    for failure in document.content["failures"]:
        print(f"{failure['name']}: no result: {failure['reason']}")
    finish(document)
    return 0 if len(samples) == len(places) else 1


if __name__ == "__main__":
    sys.exit(main())
