# SPDX-License-Identifier: Apache-2.0
"""The baseline makes the frames of a session, through the first frame, the filling and the full window."""

from __future__ import annotations

import pytest
import torch
from bench.baselines.compiled_step import CompiledSampler

from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.streams import STREAMS, play, random_controls, random_model, random_session

STEPS = 10  # the window is 2, its ring goes round twice


def one_graph(function, mode):
    """Captured whole, as for Inductor, whose code takes a minute to build and is not looked at here."""
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def open_baseline(model, compiler=one_graph) -> StreamSession:
    return random_session(model, sampler=CompiledSampler(compiler))


CASES = [(name, torch.float32) for name in STREAMS] + [("text and maps", torch.bfloat16)]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_it_makes_the_frames_of_a_session(name, dtype):
    torch.compiler.reset()
    model = random_model(STREAMS[name], dtype)
    controls = random_controls(model, STEPS)
    with open_baseline(model) as baseline, random_session(model) as session:
        expected, _ = play(session, controls)
        frames, video = play(baseline, controls)
    assert_near(frames, expected, 1e-5 if dtype == torch.float32 else 0.1)
    assert video.dtype == torch.uint8


def test_a_full_window_is_compiled_once_and_without_our_ops():
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    def compiler(function, mode):
        return torch.compile(function, backend=keep, fullgraph=True)

    model = random_model(next(iter(STREAMS.values())))
    with open_baseline(model, compiler) as session:
        play(session, random_controls(model, STEPS))
    assert len(graphs) == 1 and "aapt" not in graphs[0].code and "scaled_dot_product_attention" in graphs[0].code
