# SPDX-License-Identifier: Apache-2.0
"""The node pack for ComfyUI: loaded as its loader does, run as its executor does, with stand-ins for its objects."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.integrations.comfy_vae import VAE
from torch import Tensor

import aapt_fast
from aapt_fast import AAPTPipeline
from aapt_fast.integrations import comfyui, vae_layers
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.testing.compare import assert_near

PACK = Path(comfyui.__file__).parent
PAGE = Path(__file__).parents[2] / "docs/how-to/use-in-comfyui.md"


def loaded(path: Path) -> types.ModuleType:
    """Import a file or a folder of custom_nodes by its path, under the name that ComfyUI's `load_custom_node` gives."""
    file = path if path.is_file() else path / "__init__.py"
    name = str(path.with_suffix("")) if path.is_file() else str(path).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@pytest.fixture(scope="module")
def nodes() -> dict[str, type]:
    return loaded(PACK).NODE_CLASS_MAPPINGS


def run(node: type, **given: Any) -> dict[str, Any]:
    """Run a node with its defaults and the given inputs, each checked as ComfyUI does; its outputs by name."""
    kinds = node.INPUT_TYPES()
    declared = {**kinds["required"], **kinds.get("optional", {})}
    assert set(given) <= set(declared)
    arguments = {}
    for name, (kind, *options) in declared.items():
        settings = options[0] if options else {}
        if name in given:
            arguments[name] = given[name]
        elif "default" in settings or isinstance(kind, list):
            arguments[name] = settings.get("default", kind[0] if isinstance(kind, list) else None)
        else:
            assert name not in kinds["required"], f"{name} has to be connected"
        if name in arguments and isinstance(kind, list):
            assert arguments[name] in kind
        if name in arguments and kind == "INT":
            assert settings["min"] <= arguments[name] <= settings["max"]
    outputs = getattr(node(), node.FUNCTION)(**arguments)
    return dict(zip(node.RETURN_NAMES, outputs, strict=True))


@pytest.fixture(scope="module")
def model(nodes: dict[str, type]) -> AAPTPipeline:
    return run(nodes["AAPTLoadModel"], dtype="float32")["model"]


@pytest.fixture
def stream(nodes: dict[str, type], model: AAPTPipeline) -> Callable[..., Tensor]:
    return lambda **given: run(nodes["AAPTStream"], **{"model": model, "frames": 8, **given})["images"]


# ---- the loader's contract ----


@pytest.mark.parametrize("how", ["the folder", "a link to it", "a file that imports the mappings"])
def test_every_way_of_installing_gives_the_mappings(how, tmp_path):
    path = PACK
    if how == "a link to it":
        path = tmp_path / "aapt_fast"
        path.symlink_to(PACK)
    if how == "a file that imports the mappings":
        (line,) = re.findall(r"^echo \"(.*)\" > custom_nodes/aapt_fast_nodes.py$", PAGE.read_text(), re.MULTILINE)
        path = tmp_path / "aapt_fast_nodes.py"
        path.write_text(line + "\n")
    module = loaded(path)
    assert set(module.NODE_CLASS_MAPPINGS) == set(module.NODE_DISPLAY_NAME_MAPPINGS) == set(comfyui.NODE_CLASS_MAPPINGS)


def test_nodes_declare_what_comfyui_reads(nodes):
    wires: set[str] = {"IMAGE", "VAE"}
    for node in nodes.values():
        wires |= set(node.RETURN_TYPES)
    for name, node in nodes.items():
        assert name.startswith("AAPT") and node.CATEGORY == "aapt_fast" and node.DESCRIPTION
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        kinds = node.INPUT_TYPES()
        assert set(kinds) <= {"required", "optional"}
        method = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert list(method) == ["self", *kinds["required"], *kinds.get("optional", {})]
        for group in kinds.values():
            for kind, *options in group.values():
                assert isinstance(kind, list) or kind in wires | {"INT", "FLOAT", "STRING", "BOOLEAN"}
                assert len(options) <= 1 and all(isinstance(each, dict) for each in options)
        optional = kinds.get("optional", {})
        assert all(method[each].default is not inspect.Parameter.empty for each in optional)
    json.dumps([node.INPUT_TYPES() for node in nodes.values()])  # the server sends them to the browser


def test_the_list_of_models_is_that_of_the_package(nodes):
    names, settings = nodes["AAPTLoadModel"].INPUT_TYPES()["required"]["model"]
    assert names == list(aapt_fast.list_models()) and settings["default"] == "mini-person"
    assert all(
        motion in nodes["AAPTStream"].INPUT_TYPES()["required"]["motion"][1]["tooltip"]
        for motion in aapt_fast.list_motions()
    )


# ---- what the nodes do ----


def test_a_stream_is_an_image_batch_with_the_frames_of_the_pipeline(nodes, model):
    made = run(nodes["AAPTStream"], model=model, motion="wave", frames=6, seed=3, gallery=2)
    expected = model(
        model.gallery[2], "wave", num_frames=6, generator=torch.Generator().manual_seed(3), output_type="np"
    ).frames[0]
    images = made["images"]
    assert images.shape == (6, 96, 96, 3) and images.dtype == torch.float32 and images.is_contiguous()
    assert images.device.type == "cpu" and torch.equal(images, torch.from_numpy(expected)) and made["fps"] == 24.0


def test_seeds_decide(stream):
    one, again, other = (stream(motion="medley", seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_an_image_is_the_first_picture(stream, model):
    picture = torch.from_numpy(model.gallery[4].image)[None].float() / 255  # as LoadImage makes it
    made = stream(motion="idle", image=picture)
    assert torch.equal(made, stream(motion="idle", image=picture, gallery=2))  # which counts without an image only
    assert (made[0] - picture[0]).abs().mean() < 0.05 < (stream(motion="idle")[0] - picture[0]).abs().mean()
    large = torch.nn.functional.interpolate(picture.movedim(-1, 1), (120, 200)).movedim(1, -1)
    assert stream(motion="idle", image=large).shape == (8, 96, 96, 3)


def test_a_model_of_your_own_comes_from_a_path(nodes, model, stream, tmp_path):
    model.save_pretrained(tmp_path)
    own = run(nodes["AAPTLoadModel"], model="mini-anyone", path=f" {tmp_path} ", dtype="float32")["model"]
    assert torch.equal(stream(model=own), stream())


def test_auto_is_the_device_of_comfyui_and_its_fast_dtype(nodes, monkeypatch):
    from aapt_fast.integrations.comfyui import nodes as module

    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(AAPTPipeline, "from_pretrained", lambda path, **options: asked.append((path, options)))
    monkeypatch.setattr(
        module, "fast_dtype", lambda device: {"cpu": torch.float32, "cuda": torch.bfloat16}[device.type]
    )
    for theirs, ours in (("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")):
        management = types.SimpleNamespace(get_torch_device=lambda name=theirs: torch.device(name))
        monkeypatch.setitem(sys.modules, "comfy.model_management", management)
        run(nodes["AAPTLoadModel"])
        run(nodes["AAPTLoadModel"], device="cpu", dtype="bfloat16")
        auto, given = (options for _, options in asked[-2:])
        dtype = torch.bfloat16 if ours.startswith("cuda") else torch.float32
        assert auto == {"device": torch.device(ours), "torch_dtype": dtype}
        assert given == {"device": torch.device("cpu"), "torch_dtype": "bfloat16"}


# ---- ComfyUI's progress bar and cancel button ----


class Cancelled(Exception):
    """Stand-in for ComfyUI's `InterruptProcessingException`."""


@pytest.fixture
def hooks(monkeypatch) -> Iterator[types.SimpleNamespace]:
    """Stand-ins for the modules of ComfyUI that nodes call, with its names and signatures."""
    found = types.SimpleNamespace(bars=[], updates=[], cancel_after=None)

    class ProgressBar:
        def __init__(self, total, node_id=None):
            found.bars.append(total)

        def update_absolute(self, value, total=None, preview=None):
            found.updates.append((value, preview))

    def throw_exception_if_processing_interrupted():
        if found.cancel_after is not None and len(found.updates) >= found.cancel_after:
            raise Cancelled

    management = types.SimpleNamespace(
        throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted
    )
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    monkeypatch.setitem(sys.modules, "comfy.utils", types.SimpleNamespace(ProgressBar=ProgressBar))
    yield found


def test_the_bar_moves_with_every_step_and_shows_its_last_picture(stream, hooks):
    images = stream(frames=10, motion="walk")
    assert hooks.bars == [3] and [value for value, _ in hooks.updates] == [1, 2, 3]
    for last, (_, (kind, picture, size)) in zip((3, 7), hooks.updates[:2], strict=True):
        expected = Image.fromarray((images[last] * 255).round().byte().numpy())
        assert (kind, size) == ("JPEG", 512) and picture.tobytes() == expected.tobytes()


def test_a_cancelled_run_ends_with_comfyuis_exception_and_the_next_one_works(stream, hooks):
    hooks.cancel_after = 1
    with pytest.raises(Cancelled):
        stream(frames=12)
    assert len(hooks.updates) == 1
    hooks.cancel_after = None
    assert len(stream(frames=4)) == 4


# ---- mistakes ----

BAD_IMAGES = [
    (torch.zeros(2, 96, 96, 3), r"image: expected one picture, \[1, H, W, 3\], got 2"),
    (torch.zeros(1, 96, 96, 4), r"image: expected shape \[1, H, W, 3\], got \[1, 96, 96, 4\]"),
    (torch.zeros(96, 96, 3), r"image: expected shape \[1, H, W, 3\], got \[96, 96, 3\]"),
    (torch.full((1, 96, 96, 3), 255.0), r"image: expected values in 0\.\.1, got 255 to 255"),
]


@pytest.mark.parametrize(("image", "message"), BAD_IMAGES)
def test_bad_images_are_named(stream, image, message):
    with pytest.raises(ValueError, match=message):
        stream(image=image)


def test_other_mistakes_name_argument_expected_and_got(nodes, stream, model):
    with pytest.raises(ValueError, match=r"motion: expected idle \| .*, got swim"):
        stream(motion="swim")
    with pytest.raises(ValueError, match="gallery: expected 0 to 15, got 16"):
        stream(gallery=16)
    with pytest.raises(ValueError, match="gallery: expected an image: this model has no gallery, got 0"):
        stream(model=AAPTPipeline(model.model))
    with pytest.raises(TypeError, match="model: expected AAPTPipeline, got str"):
        stream(model="mini-person")
    with pytest.raises(ValueError, match=r"path: expected a bundled model .*, got /nowhere"):
        run(nodes["AAPTLoadModel"], path="/nowhere")


# ---- the page ----


def test_the_workflow_of_the_page_runs(nodes):
    """docs/how-to/use-in-comfyui.md, its workflow in ComfyUI's format for programs, up to ComfyUI's own nodes."""
    (block,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    workflow = json.loads(block)
    done: dict[str, tuple[Any, ...]] = {}
    for number, step in workflow.items():
        if step["class_type"] in nodes:
            inputs = {
                name: done[value[0]][value[1]] if isinstance(value, list) else value
                for name, value in step["inputs"].items()
            }
            done[number] = tuple(run(nodes[step["class_type"]], **inputs).values())
    assert {step["class_type"] for step in workflow.values()} - set(nodes) == {"CreateVideo", "SaveVideo"}
    images, fps = done["2"]
    assert images.shape == (96, 96, 96, 3) and fps == 24.0


# ---- the VAE of ComfyUI ----


@pytest.fixture
def vae() -> VAE:
    return VAE()


def decoded(vae: VAE) -> Tensor:
    return vae.first_stage_model.decode(torch.randn(1, 8, 4, 5, 6, generator=torch.Generator().manual_seed(1)))


def test_the_wan_vae_is_patched_in_place_and_back(nodes, vae, monkeypatch):
    expected, ran = decoded(vae), []
    original = vae_layers.causal_conv3d
    monkeypatch.setattr(vae_layers, "causal_conv3d", lambda *given: (ran.append(len(given)), original(*given))[1])
    made = run(nodes["AAPTPatchVAE"], vae=vae)
    assert made["vae"] is vae and made["report"].startswith("WanVAE: 4 replaced, 0 left alone")
    assert_near(decoded(vae), expected, 1e-5)
    assert len(ran) == 8  # two convolutions, four frames
    back = run(nodes["AAPTPatchVAE"], vae=vae, enabled=False)
    assert back["report"].startswith("WanVAE: 0 replaced, 4 left alone") and torch.equal(decoded(vae), expected)
    assert len(ran) == 8


def test_patch_takes_the_object_of_comfyui_itself(vae):
    report = aapt_fast.patch(vae)
    assert len(report.replaced) == 4 and report.parts() == {"vae"}
    assert {finding.where.partition(".")[0] for finding in report.replaced} == {"first_stage_model"}


def test_layers_that_cast_their_weights_run_as_they_are(vae, monkeypatch):
    layers = [*vae.first_stage_model.convs, vae.first_stage_model.up.resample[1]]
    for layer, name in zip(layers, ("comfy_cast_weights", "weight_function", "bias_function"), strict=True):
        setattr(layer, name, (object(),))
    expected = decoded(vae)
    aapt_fast.patch(vae)
    for layer in layers:
        layer.casts = 0
    monkeypatch.setattr(vae_layers, "causal_conv3d", None)
    monkeypatch.setattr(vae_layers, "upsample_and_convolve", None)
    assert_near(decoded(vae), expected, 1e-6)
    assert [layer.casts for layer in layers] == [4, 4, 4]


def test_another_vae_is_refused(nodes):
    other = types.SimpleNamespace(first_stage_model=torch.nn.Linear(1, 1))
    for enabled in (True, False):
        with pytest.raises(TypeError, match=r"vae: expected the VAE of Wan 2.1 or 2.2, got one of Linear"):
            run(nodes["AAPTPatchVAE"], vae=other, enabled=enabled)


def test_our_own_wan_vae_is_refused_by_patch():
    """Its class has the name of ComfyUI's."""
    with pytest.raises(TypeError, match="own and fast already"):
        aapt_fast.patch(WanVAE(WanVAEConfig(base_dim=4)))
