# SPDX-License-Identifier: Apache-2.0
"""Times of streams, whose steps depend on the step before: they take turns step by step, by the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from torch import Tensor

from aapt_fast.profiling.timing import Sample

Stream = Callable[[int], Tensor]
"""The step of this number, from 0 on -> its video [...], complete when it returns."""


def time_streams(
    streams: Mapping[str, Stream], reference: str, *, warm_up: int, steps: int
) -> tuple[dict[str, Sample], dict[str, float]]:
    """Time streams step by step, in turn, the order reversed in every second step.

    Args:
        streams: by name; all make the same video.
        reference: name of the stream with which the videos of the others are compared.
        warm_up: untimed steps.
        steps: timed steps.

    Returns:
        The times, and the largest difference between any value of a video and the reference's, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in streams}
    differences = dict.fromkeys(streams, 0.0)
    for number in range(warm_up + steps):
        videos = {}
        for name in list(streams)[:: -1 if number % 2 else 1]:
            begun = time.perf_counter()
            videos[name] = streams[name](number)
            if number >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - begun))
        for name, video in videos.items():
            difference = (video.float() - videos[reference].float()).abs().max().item()
            differences[name] = max(differences[name], difference)
    return {name: Sample(tuple(values), None, "wall clock of a step") for name, values in times.items()}, differences
