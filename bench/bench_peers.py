# SPDX-License-Identifier: Apache-2.0
"""Time of a step of other systems, where they are installed, by one protocol: frames on the host, past frames filled.

    python -m bench.bench_peers --out F ours flashdreams self-forcing=FOLDER vllm-omni waypoint

    ours            this package, Wan 2.1 1.3B as Self-Forcing samples it, with its VAE and random weights
    flashdreams     the same model by NVIDIA's FlashDreams; =NAME for another of its recipes with that geometry
    self-forcing    the same model by its authors, =FOLDER with their checkout; whole clips
    vllm-omni       Wan 2.1 1.3B by vLLM-Omni, =MODEL for another; whole clips, 50 steps
    waypoint        Waypoint 1.5 by Overworld's World Engine, =MODEL for another

Those of one call take their steps in turn, so they have to fit the GPU, and an environment, together; else call it once
for each with the same --out, which adds to it. Times are ratios only between equal geometries: the others of a call
have the first named of their geometry as their baseline. Of systems in other packages, none has run with this program:
bench/README.md. One that is not installed, or fails, is a failure in the document, and the exit status is then 1.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import torch

from aapt_fast.profiling.document import Document, result
from aapt_fast.profiling.timing import Sample
from bench.harness.program import finish, open_document, parser
from bench.peers.flashdreams import FlashDreams
from bench.peers.ours import Ours
from bench.peers.peer import Geometry, Peer, Step, to_host
from bench.peers.self_forcing import SelfForcing
from bench.peers.vllm_omni import VllmOmni
from bench.peers.waypoint import Waypoint
from bench.time_pipeline import measure

TIMER = "wall clock of a step and the copy to the host"
PEERS: dict[str, Callable[[str | None], Peer]] = {
    "ours": Ours,
    "flashdreams": FlashDreams,
    "self-forcing": SelfForcing,
    "vllm-omni": VllmOmni,
    "waypoint": Waypoint,
}


def opened(peer: Peer, device: torch.device) -> Step:
    """Load a peer and fill its past frames; returns a step that ends with frames on the host, checked.

    Raises ImportError where it is not installed, and ValueError for frames of another geometry.
    """
    step = peer.load(device)
    for _ in range(peer.filling):
        step()

    def whole() -> torch.Tensor:
        return to_host(step(), peer.geometry)

    whole()
    return whole


def report(document: Document, samples: dict[str, Sample], geometries: dict[str, Geometry]) -> None:
    """Add one result per peer; the first of a geometry is the baseline of the others that have it."""
    baselines: dict[Geometry, str] = {}
    for name, sample in samples.items():
        geometry = geometries[name]
        baseline = baselines.setdefault(geometry, name)
        ratio = sample.times(samples[baseline])
        size = f"{geometry.width}x{geometry.height}"
        entry = result(
            f"pipeline/{name}/{size}",
            dataclasses.replace(sample, timer=TIMER),
            name,
            baseline=baseline,
            ratio=ratio,
            geometry=dataclasses.asdict(geometry),
            video_frames=geometry.video_frames,
            video_fps=1e3 * geometry.video_frames / sample.p50,
        )
        document.add("results", entry)
        unit = "clip" if geometry.whole_clip else "step"
        print(
            f"{name}: {geometry.video_frames} video frames of {size} in a {unit}: p50 {sample.p50:.1f} ms, "
            f"p95 {entry['p95_ms']:.1f}, {entry['video_fps']:.1f} video frames per second, "
            f"{ratio:.2f} times as fast as {baseline}"
        )


def main(words: list[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("peers", nargs="+", metavar="NAME[=PLACE]", help=", ".join(PEERS))
    command.add_argument("--warm-up", type=int, default=2, help="steps more that are not counted (default %(default)s)")
    command.add_argument("--steps", type=int, default=20, help="steps of each (default %(default)s)")
    arguments = command.parse_args(words)
    places = {name: place or None for name, _, place in (each.partition("=") for each in arguments.peers)}
    unknown = [name for name in places if name not in PEERS]
    if unknown or len(places) < len(arguments.peers):
        got = f"got {unknown[0]}" if unknown else "got one twice"
        command.error(f"peers: expected some of {', '.join(PEERS)}, each once, {got}")
    for name, least in (("warm_up", 0), ("steps", 1)):
        if getattr(arguments, name) < least:
            command.error(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(arguments, name)}")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    document = open_document(arguments.out)
    steps, geometries = {}, {}
    for name, place in places.items():
        try:
            peer = PEERS[name](place)
            steps[name], geometries[name] = opened(peer, device), peer.geometry
        except Exception as error:
            document.fail(f"pipeline/{name}", name, error)
    document.note_clocks("before peers")
    samples = measure(document, steps, warm_up=arguments.warm_up, steps=arguments.steps)
    document.note_clocks("after peers")
    report(document, samples, geometries)
    for failure in document.content["failures"]:
        print(f"{failure['what_ran']}: no result: {failure['reason']}")
    finish(document)
    return 0 if len(samples) == len(places) else 1


if __name__ == "__main__":
    sys.exit(main())
