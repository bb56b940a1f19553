# SPDX-License-Identifier: Apache-2.0
"""Say what a folder of videos holds, and what in it cannot be trained on, before a training begins."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from aapt_fast.progress import progress, without_messages
from aapt_fast.training.own_videos import own_recipe
from aapt_fast.worlds.filmed.folder import Contents, look_through, video_paths


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; returns 1 if there are faults."""
    count = len(video_paths(arguments.folder))
    with without_messages(arguments.quiet), progress(count, "decode the videos", "video") as bar:
        found = look_through(arguments.folder, decode=True, looked_at=bar.update)
    sentences = [str(fault) for fault in found.faults]
    if found.films and not found.faults:
        try:
            own_recipe(arguments.folder)
        except ValueError as error:
            sentences.append(str(error))
    print(json.dumps(summary(found, sentences), indent=1) if arguments.json else in_words(found, sentences))
    return 1 if sentences else 0


def summary(found: Contents, sentences: list[str]) -> dict[str, Any]:
    """JSON values of what was found."""
    films = [
        {
            "name": film.name,
            "width": film.stored.width,
            "height": film.stored.height,
            "fps": film.stored.fps,
            "seconds": film.stored.seconds,
            "clips": film.clips,
            "control": film.control,
        }
        for film in found.films
    ]
    return {"films": films, "clips": found.clips, "faults": sentences}


def in_words(found: Contents, sentences: list[str]) -> str:
    """Some lines for people."""
    seconds = sum(film.stored.seconds for film in found.films)
    lines = [f"{len(found.films)} videos of {seconds:.0f} s in all can be trained on: {found.clips} clips of 2.5 s"]
    if found.films:
        sizes = Counter(f"{film.stored.width}x{film.stored.height}" for film in found.films)
        rates = Counter(f"{film.stored.fps:.3g}" for film in found.films)
        control = found.films[0].control
        lines += [
            f"sizes: {_counted(sizes)}; the middle of each picture becomes 96x96",
            f"frames per second: {_counted(rates)}; read at 24",
            "controls: " + ("none" if control is None else f"[T, {', '.join(map(str, control))}]"),
        ]
    lines += [f"faults: {len(sentences) or 'none'}", *(f"  {sentence}" for sentence in sentences)]
    return "\n".join(lines)


def _counted(values: Counter[str]) -> str:
    """The most frequent values, such as "1280x720 (12 videos), 640x480 (2 videos)"."""
    shown = [f"{value} ({count} video{'s' if count > 1 else ''})" for value, count in values.most_common(5)]
    return ", ".join(shown) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
