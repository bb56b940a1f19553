# SPDX-License-Identifier: Apache-2.0
"""How long does a step of somebody else's pipeline take, by the protocol and in the document of this folder?

    python -m bench.time_pipeline --out results.json --video-frames 12 \\
        theirs=their_pipeline:open_stream ours=my_pipeline:open_stream

Every NAME=MODULE:FUNCTION is a function in a module that Python finds (the present folder comes first). Called once
without arguments it loads what it needs and returns a step: a function without arguments that makes the next
`--video-frames` frames. Pipelines take their steps in turn; the first named is the baseline of the others. A step has
ended when the GPU, if there is one, has nothing left to do. A pipeline that fails is noted and the others go on; the
exit status is then 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from aapt_fast.profiling.timing import Sample
from bench.harness.document import Document, clocks

Step = Callable[[], object]
TIMER = "wall clock of a step, until the GPU has nothing left to do"


def open_pipeline(place: str) -> Step:
    """The step that MODULE:FUNCTION returns. Raises ValueError for a name of another form and for what is no step."""
    module, _, function = place.partition(":")
    if not module or not function.isidentifier():
        raise ValueError(f"pipeline: expected MODULE:FUNCTION, got {place}")
    step = getattr(importlib.import_module(module), function)()
    if not callable(step):
        raise ValueError(f"pipeline {place}: expected to get a function without arguments, got {type(step).__name__}")
    return step


def timed(step: Step) -> float:
    """Milliseconds of one step."""
    begun = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun)


def measure(document: Document, pipelines: dict[str, Step], *, warm_up: int, steps: int) -> dict[str, Sample]:
    """Steps of all pipelines in turn; one that fails is noted in the document and takes no more part."""
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
    """One result per pipeline; the first is the baseline."""
    baseline = next(iter(samples), None)
    for name, sample in samples.items():
        entry = {
            "name": f"pipeline/{name}",
            **sample.as_dict(),
            "tflops": None,
            "share_of_ceiling": None,
            "baseline": baseline,
            "ratio": sample.times(samples[baseline]),
            "what_ran": name,
            "video_frames": video_frames,
            "video_fps": 1e3 * video_frames / sample.p50,
        }
        document.add("results", entry)
        fps = f"{entry['video_fps']:.1f} video frames per second"
        print(f"{name}: p50 {sample.p50:.2f} ms, p95 {entry['p95_ms']:.2f}, {fps}, ratio {entry['ratio']:.2f}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", nargs="+", metavar="NAME=MODULE:FUNCTION")
    parser.add_argument("--out", type=Path, required=True, help="document to write or to add to")
    parser.add_argument("--video-frames", type=int, required=True, help="that one step makes")
    parser.add_argument("--warm-up", type=int, default=5, help="steps that are not counted (default %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="steps of each pipeline (default %(default)s)")
    options = parser.parse_args(arguments)
    places = dict(each.partition("=")[::2] for each in options.pipelines)
    if len(places) < len(options.pipelines) or not all(places.values()):
        parser.error("pipelines: expected NAME=MODULE:FUNCTION, every name once")
    for name, least in (("video_frames", 1), ("warm_up", 0), ("steps", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(options, name)}")

    sys.path.insert(0, os.getcwd())
    document = Document.open(options.out, shlex.join(sys.argv))
    pipelines = {}
    for name, place in places.items():
        try:
            pipelines[name] = open_pipeline(place)
        except Exception as error:
            document.fail(f"pipeline/{name}", name, error)
    document.add("clocks", {"before": "pipelines", "clocks": clocks()})
    samples = measure(document, pipelines, warm_up=options.warm_up, steps=options.steps)
    document.add("clocks", {"after": "pipelines", "clocks": clocks()})
    report(document, samples, options.video_frames)
    for failure in document.content["failures"]:
        print(f"{failure['name']}: no result: {failure['reason']}")
    return 0 if len(samples) == len(places) else 1


if __name__ == "__main__":
    sys.exit(main())
