# SPDX-License-Identifier: Apache-2.0
"""The adapters of other systems, with stand-ins that take the calls which these systems' own code takes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from bench import bench_peers
from bench.bench_wan_blocks import TINY
from bench.peers import self_forcing
from bench.peers.flashdreams import FlashDreams
from bench.peers.ours import Ours
from bench.peers.peer import Geometry, Step, to_host
from bench.peers.self_forcing import SelfForcing
from bench.peers.vllm_omni import VllmOmni, frames_of
from bench.peers.waypoint import Waypoint

from aapt_fast.models.vae.wan import WanVAEConfig
from aapt_fast.profiling.schema import problems

CPU = torch.device("cpu")
SMALL = Geometry(8, 4, 12, 3, 21, 5, "small")


def install(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    """Put a module, and the packages above it, where `import` finds them."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
    module = ModuleType(name)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)


class SmallPeer:
    """A system that makes frames, and counts its steps."""

    def __init__(self, geometry: Geometry = SMALL, frames: int = 12) -> None:
        self.geometry, self.filling, self.frames, self.steps = geometry, 3, frames, 0

    def load(self, device: torch.device) -> Step:
        def step() -> torch.Tensor:
            self.steps += 1
            return torch.zeros(self.frames, 4, 8, 3, dtype=torch.uint8)

        return step


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peers: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    out = tmp_path / "out.json"
    monkeypatch.setattr(bench_peers, "PEERS", {name: lambda _, peer=peer: peer for name, peer in peers.items()})
    status = bench_peers.main(["--out", str(out), "--steps", "6", "--warm-up", "1", *peers])
    return status, json.loads(out.read_text())


def test_peers_take_turns_and_only_equal_geometries_are_compared(monkeypatch, tmp_path, capsys):
    clip = Geometry(8, 4, 12, 3, None, 100, "small", whole_clip=True)
    peers = {"one": SmallPeer(), "two": SmallPeer(), "clips": SmallPeer(clip)}
    status, document = run(monkeypatch, tmp_path, peers)
    one, two, clips = document["results"]
    assert status == 0 and problems(document) == [] and [peer.steps for peer in peers.values()] == [3 + 1 + 1 + 6] * 3
    assert (one["baseline"], two["baseline"], clips["baseline"]) == ("one", "one", "clips")
    assert one["ratio"] == clips["ratio"] == 1.0 and two["ratio"] > 0
    assert one["name"] == "pipeline/one/8x4" and one["geometry"]["frames_in_sight"] == 21
    assert one["timer"] == bench_peers.TIMER and one["video_fps"] == pytest.approx(12e3 / one["p50_ms"])
    assert "clips: 12 video frames of 8x4 in a clip: p50" in capsys.readouterr().out


def test_a_peer_with_other_frames_than_it_says_gives_no_number(monkeypatch, tmp_path):
    status, document = run(monkeypatch, tmp_path, {"good": SmallPeer(), "short": SmallPeer(frames=9)})
    assert status == 1 and [each["what_ran"] for each in document["results"]] == ["good"]
    expected = "ValueError: frames: expected 12 video frames of 8x4, got a tensor [9, 4, 8, 3]"
    assert document["failures"] == [{"name": "pipeline/short", "what_ran": "short", "reason": expected}]


def test_systems_that_are_not_installed_are_one_sentence_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [name for name in bench_peers.PEERS if name != "ours"]
    assert bench_peers.main(["--out", "out.json", *names]) == 1
    reasons = {each["what_ran"]: each["reason"] for each in json.loads(Path("out.json").read_text())["failures"]}
    missing = "is not installed: expected the module"
    assert reasons == {
        "flashdreams": f"ImportError: FlashDreams {missing} flashdreams.infra.config, got no flashdreams",
        "self-forcing": "ImportError: Self-Forcing is not installed: expected a folder with its checkout, "
        "got Self-Forcing",
        "vllm-omni": f"ImportError: vLLM-Omni {missing} vllm_omni.entrypoints.omni, got no vllm_omni",
        "waypoint": f"ImportError: World Engine (Waypoint) {missing} world_engine, got no world_engine",
    }
    assert "waypoint: no result: ImportError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "peers: expected some of ours, flashdreams,"),
        (["ours", "ours"], "each once, got one twice"),
        (["ours", "--steps", "0"], "--steps: expected at least 1, got 0"),
    ],
)
def test_mistakes(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench_peers.main(words)
    assert message in capsys.readouterr().err


def test_our_own_stream_has_the_geometry_of_self_forcing_block_by_block():
    assert Ours().geometry == FlashDreams.geometry
    peer = Ours(config=TINY, vae=WanVAEConfig(base_dim=8, decoder_base_dim=8), grid=(4, 6))
    step = peer.load(CPU)
    assert [len(step()) for _ in range(3)] == [9, 12, 12]
    assert to_host(step(), peer.geometry).dtype == torch.uint8


def test_flashdreams_is_asked_block_after_block_without_its_profiler(monkeypatch):
    calls: list[Any] = []

    class Pipeline(torch.nn.Module):
        def initialize_cache(self, text, image, height, width):
            calls.append((len(text), image, height, width))
            return "cache"

        def generate(self, autoregressive_index, cache, input=None):
            calls.append(("generate", autoregressive_index, cache))
            return torch.full((12, 3, 480, 832), 2.0 * autoregressive_index - 1)

        def finalize(self, autoregressive_index, cache):
            calls.append(("finalize", autoregressive_index, cache))

    def derive_config(config, **changes):
        calls.append((config, changes))
        return SimpleNamespace(setup=Pipeline)

    install(monkeypatch, "flashdreams.infra.config", derive_config=derive_config)
    install(monkeypatch, "self_forcing.config", PIPELINE_WAN21_T2V_1PT3B="recipe")
    peer = FlashDreams()
    step = peer.load(CPU)
    assert [int(to_host(step(), peer.geometry).max()) for _ in range(2)] == [0, 255]
    blocks = [(name, number, "cache") for number in (0, 1) for name in ("generate", "finalize")]
    assert calls == [("recipe", {"enable_sync_and_profile": False}), (1, None, 60, 104), *blocks]


def test_self_forcing_is_loaded_inside_its_folder_and_makes_clips(monkeypatch, tmp_path):
    calls: list[Any] = []

    class Pipeline(torch.nn.Module):
        def __init__(self, config, device):
            super().__init__()
            calls.append((config, Path.cwd()))
            self.generator = torch.nn.Linear(2, 2)
            self.vae = SimpleNamespace(model=SimpleNamespace(clear_cache=lambda: calls.append("cleared")))

        def inference(self, noise, text_prompts):
            calls.append((tuple(noise.shape), noise.dtype, len(text_prompts)))
            return torch.ones(1, 81, 3, 480, 832)

    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "causal_inference.py").touch()
    (tmp_path / "checkpoints").mkdir()
    ema = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    torch.save({"generator": {}, "generator_ema": ema}, tmp_path / self_forcing.WEIGHTS)
    settings = SimpleNamespace(load=lambda name: [name], merge=lambda first, second: [*first, *second])
    install(monkeypatch, "omegaconf", OmegaConf=settings)
    install(monkeypatch, "pipeline", CausalInferencePipeline=Pipeline)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = os.getcwd()
    peer = SelfForcing(str(tmp_path))
    step = peer.load(CPU)
    assert os.getcwd() == before and sys.path[0] == str(tmp_path.resolve())
    frames = to_host(step(), peer.geometry)
    assert frames.dtype == torch.uint8 and int(frames.min()) == 255
    configs = list(self_forcing.CONFIGS)
    assert calls == [(configs, tmp_path), ((1, 21, 16, 60, 104), torch.bfloat16, 1), "cleared"]


def test_vllm_omni_is_asked_for_clips(monkeypatch):
    calls: list[Any] = []

    class Omni:
        def __init__(self, model):
            calls.append(model)

        def generate(self, prompt, parameters):
            calls.append((prompt["modalities"], parameters.num_frames, parameters.num_inference_steps))
            return [SimpleNamespace(images=[torch.zeros(1, 81, 480, 832, 3)])]

    install(monkeypatch, "vllm_omni.entrypoints.omni", Omni=Omni)
    install(monkeypatch, "vllm_omni.inputs.data", OmniDiffusionSamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm_omni.entrypoints", ModuleType("entrypoints"))
    peer = VllmOmni("a model")
    step = peer.load(CPU)
    assert to_host(step(), peer.geometry).shape == (81, 480, 832, 3)
    assert calls == ["a model", (["video"], 81, 50)]


@pytest.mark.parametrize(
    "images",
    [
        [torch.zeros(1, 5, 4, 8, 3).numpy()],
        [(torch.zeros(5, 4, 8, 3), "sound")],
        [{"video": torch.zeros(1, 3, 5, 4, 8)}],
        [torch.zeros(4, 8, 3).numpy() for _ in range(5)],
    ],
    ids=["video", "with sound", "named, channels first", "frames"],
)
def test_the_forms_in_which_vllm_omni_answers(images):
    assert to_host(frames_of([SimpleNamespace(images=images)]), Geometry(8, 4, 5, 2, None, 1, "small")).shape[0] == 5


def test_an_answer_without_frames_is_refused():
    with pytest.raises(ValueError, match="answer: expected video frames, got list"):
        frames_of([SimpleNamespace(images=[])])


def test_waypoint_gets_a_control_for_each_four_frames(monkeypatch):
    calls: list[Any] = []

    class WorldEngine:
        def __init__(self, model_uri, device=None):
            calls.append((model_uri, device))

        def gen_frame(self, ctrl=None, return_img=True):
            calls.append(ctrl.mouse)
            return torch.zeros(4, 720, 1280, 3, dtype=torch.uint8)

    install(monkeypatch, "world_engine", WorldEngine=WorldEngine, CtrlInput=SimpleNamespace)
    peer = Waypoint()
    step = peer.load(CPU)
    for _ in range(2):
        to_host(step(), peer.geometry)
    assert calls == [("Overworld/Waypoint-1.5-1B", "cpu"), (0.1, 0.0), (-0.1, 0.0)]
