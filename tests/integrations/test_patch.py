# SPDX-License-Identifier: Apache-2.0
"""Promises of `patch`, `unpatch`, `patched` and `explain` for any object."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import nn

import aapt_fast
from aapt_fast.integrations import explain as explaining
from aapt_fast.integrations.report import Finding, PatchReport
from aapt_fast.integrations.swap import is_swapped
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.ops.calls import observe_ops
from aapt_fast.ops.record import Found
from aapt_fast.profiling.inputs import random_controls
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.streams import STREAMS, random_model, random_session
from aapt_fast.testing.wan import WAN_KINDS, random_wan


def small_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True]).eval()


def test_a_report_reads_well():
    vae = small_vae()
    before = str(aapt_fast.explain(vae))
    assert before.startswith("AutoencoderKLWan: 0 replaced,") and "not patched; patch() would give" in before
    report = aapt_fast.patch(vae)
    text = str(report)
    convolutions = sum(type(module).__name__ == "WanCausalConv3d" for module in vae.modules())
    assert f"  replaced: vae: {convolutions} x WanCausalConv3d.forward: ops.causal_conv3d" in text
    assert "  replaced: vae: AutoencoderKLWan._decode: " in text and "left alone:" not in text
    assert report.parts() == {"vae"}
    assert str(aapt_fast.explain(vae)) == text


def test_reports_group_equal_lines_and_name_single_places():
    found = tuple(Finding("vae", where, "A.forward", "why") for where in ("a", "b"))
    text = str(PatchReport("A", found[:1], found))
    assert text.splitlines() == [
        "A: 1 replaced, 2 left alone",
        "  replaced: vae: A.forward at a: why",
        "  left alone: vae: 2 x A.forward: why",
    ]


def test_what_was_not_asked_for_is_not_touched():
    vae = small_vae()
    report = aapt_fast.patch(vae, vae=False)
    assert not report.replaced and not report.left_alone and not is_swapped(vae)


def test_patched_ends_with_its_block_and_after_an_exception():
    vae = small_vae()
    with aapt_fast.patched(vae) as report:
        assert report.replaced and is_swapped(vae) and is_swapped(vae.decoder.conv_in)
    assert not any(map(is_swapped, vae.modules()))
    with pytest.raises(KeyError), aapt_fast.patched(vae):
        raise KeyError
    assert not any(map(is_swapped, vae.modules()))


def test_unpatch_takes_what_patch_takes_and_any_patched_part():
    vae = small_vae()
    aapt_fast.unpatch(vae)  # never patched
    aapt_fast.patch(vae)
    aapt_fast.unpatch(vae.decoder.conv_in)
    assert not is_swapped(vae.decoder.conv_in) and is_swapped(vae)


def test_patched_leaves_an_earlier_patch_alone():
    vae = small_vae()
    aapt_fast.patch(vae)
    with aapt_fast.patched(vae):
        pass
    assert is_swapped(vae.decoder.conv_in)


def test_strict_raises_and_changes_nothing():
    vae = small_vae()
    aapt_fast.patch(small_vae(), strict=True)
    conv = vae.decoder.conv_in
    conv.forward = lambda x, cache_x=None: x
    with pytest.raises(RuntimeError, match=r"decoder\.conv_in: another package has replaced its forward"):
        aapt_fast.patch(vae, strict=True)
    assert not any(map(is_swapped, vae.modules()))
    report = aapt_fast.patch(vae)
    assert [finding.where for finding in report.left_alone] == ["decoder.conv_in"]
    assert not is_swapped(conv)


def test_explain_tells_what_no_longer_runs():
    vae = small_vae()
    aapt_fast.patch(vae)
    vae.decoder.conv_in.forward = lambda x, cache_x=None: x
    vae.decoder.conv_out.to("meta")
    reasons = {finding.where: finding.what for finding in aapt_fast.explain(vae).left_alone}
    idle = "replaced, but the original runs"
    assert reasons == {
        "decoder.conv_in": f"{idle}: another package has replaced its forward",
        "decoder.conv_out": f"{idle}: on meta aapt_fast has no kernel for it, torch's own stays",
    }


def test_a_class_that_was_changed_since_is_not_overwritten():
    vae = small_vae()
    aapt_fast.patch(vae)
    conv = vae.decoder.conv_in
    nn.utils.parametrize.register_parametrization(conv, "weight", nn.Identity())
    with pytest.raises(RuntimeError, match="ParametrizedWanCausalConv3d: expected the class that patch gave it"):
        aapt_fast.unpatch(vae)
    nn.utils.parametrize.remove_parametrizations(conv, "weight")
    aapt_fast.unpatch(vae)
    assert not any(map(is_swapped, vae.modules()))


def test_holders_are_searched():
    vae = small_vae()
    wrapper = SimpleNamespace(model=vae)
    for holder, place in (
        (SimpleNamespace(components={"vae": vae, "scheduler": object()}), "vae"),
        (SimpleNamespace(vae=wrapper), "vae.model"),
        (wrapper, "model"),
        (nn.ModuleDict({"first": nn.ModuleDict({"vae": vae})}), "first.vae"),
    ):
        with aapt_fast.patched(holder) as report:
            assert is_swapped(vae)
            assert {finding.where for finding in report.replaced} >= {place, f"{place}.decoder.conv_in"}
        assert not is_swapped(vae)


@pytest.mark.parametrize("obj", [nn.Linear(2, 2), 3, None, SimpleNamespace(components={})])
def test_unknown_objects_are_refused(obj):
    for function in (aapt_fast.patch, aapt_fast.explain, aapt_fast.unpatch):
        with pytest.raises(TypeError, match=r"^obj: expected an object that is or holds one of AutoencoderKLWan, "):
            function(obj)


def test_our_own_models_need_no_patch():
    model = random_model(NANO)
    with torch.device("meta"):
        wan = WanVAE(WanVAEConfig(base_dim=4))
    for ours in (model, model.vae, model.generator, random_wan(), wan, random_session(model)):
        message = f"^obj: expected .*, got {type(ours).__name__}, which is aapt_fast's own and fast already"
        with pytest.raises(TypeError, match=message):
            aapt_fast.patch(ours)
        report = str(aapt_fast.explain(ours))
        assert report.startswith(f"{type(ours).__name__}: aapt_fast's own, there is nothing to replace\n  runs: op: ")
    assert str(aapt_fast.explain(wan)).endswith("op: causal_conv3d: nothing on meta")


def test_a_report_names_the_record_of_the_gpu_that_a_model_is_on(monkeypatch, tmp_path):
    class OnGpu(nn.Linear):
        def parameters(self, recurse=True):
            yield SimpleNamespace(device=torch.device("cuda", 0))

    found = Found(tmp_path, "NVIDIA H200", problem="there is no record of this NVIDIA H200")
    monkeypatch.setattr(explaining, "record_for", lambda device, selected: found if device.index == 0 else None)
    words = explaining._record([nn.Linear(1, 1), OnGpu(1, 1)])
    assert words == found.in_words() and explaining._record([nn.Linear(1, 1)]) is None
    assert str(PatchReport("A", kernels=words)).splitlines()[-1] == f"  kernels: {words}"
    assert "kernels:" not in str(PatchReport("A"))


@pytest.mark.parametrize("kind", ["pose", "text", "Wan"])
def test_the_ops_in_a_report_are_those_that_a_stream_calls(kind):
    if kind in STREAMS:
        session = random_session(random_model(STREAMS[kind]))
        (control,) = random_controls(session.model, 1)
    else:
        config = WAN_KINDS["one head of 128"]
        model = StreamModel(random_wan(config), WanVAE(WanVAEConfig(base_dim=4)), grid=(4, 4))
        session, control = StreamSession(model, prompt=torch.ones(2, config.text_width)), None
    with observe_ops() as calls:
        session.step(control)
    report = aapt_fast.explain(session)
    reported = {finding.kind: finding.what for finding in report.own}
    assert calls.what_ran().items() - {("philox_normal", reported["kv_write"])} == reported.items()
    assert not report.replaced and not report.left_alone
    assert {finding.where for finding in report.own} == {"generator", "vae"}


@pytest.mark.parametrize("function", [aapt_fast.patch, aapt_fast.explain])
@pytest.mark.parametrize("hold", [lambda vae: [vae], lambda vae: (vae, vae), lambda vae: {"vae": vae}])
def test_one_object_at_a_time(function, hold):
    with pytest.raises(TypeError, match=r"^obj: expected one object, got a (list|tuple|dict): give what is in it one"):
        function(hold(small_vae()))


def test_large_packages_are_not_imported_before_they_are_needed():
    large = ("diffusers", "transformers", "tokenizers", "ftfy", "torch._dynamo")  # the last: a second and 70 MB
    code = f"import sys, aapt_fast; aapt_fast.patch; print(*(name for name in {large} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not found.stdout.split()


def test_compiled_modules_are_searched():
    vae = small_vae()
    compiled = torch.compile(vae, backend="eager")
    with aapt_fast.patched(compiled):
        assert is_swapped(vae.decoder.conv_in)
