# SPDX-License-Identifier: Apache-2.0
"""Where recorded forward passes are left to the original, what else happens to such models, and what is said."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig, apply_group_offloading
from safetensors.torch import load_file
from tests.integrations.diffusers_models import random_transformer
from tests.integrations.recorded_calls import (
    KEPT,
    assert_left_alone,
    assert_right,
    inputs,
    made,
    model,
    patched,
    plain,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import aapt_fast
from aapt_fast.integrations import recorded_forward
from aapt_fast.integrations.swap import is_swapped
from aapt_fast.streaming import graph
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.recorder import record_on_cpu

__all__ = ["made", "model"]  # fixtures


# ---- left to the original ----


def test_gradients_go_through_the_original(model, made):
    given = inputs()
    given["hidden_states"].requires_grad_()
    model(**given).sample.sum().backward()
    assert given["hidden_states"].grad is not None and not made
    model.proj_out.requires_grad_()
    model(**inputs()).sample.sum().backward()
    assert model.proj_out.weight.grad is not None and not made
    with torch.no_grad():
        assert_right(model, 0)
    assert made == ["cpu"]


def test_forward_derivatives_and_batches_of_calls_go_through_the_original(model, made):
    given = inputs()
    x, rest = given.pop("hidden_states"), given
    _, tangent = torch.func.jvp(lambda x: model(x, **rest).sample, (x,), (torch.ones_like(x),))
    assert tangent.abs().max() > 1e-3
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        model(dual, **rest)
    many = torch.func.vmap(lambda x: model(x, **rest).sample)(x[None].repeat(3, 1, 1, 1, 1, 1))
    assert_near(many[1], plain(model, x, **rest), 1e-5)
    assert not made


def test_dropout_in_training_goes_through_the_original(model, made):
    model.train()
    assert_right(model, 0)
    assert made == ["cpu"]  # its dropout is 0
    model.blocks[1].attn2.to_out[1].p = 0.5
    assert_left_alone(model, made, "blocks.1.attn2.to_out.1 (Dropout) is in training mode with dropout")
    model.eval()
    assert_right(model, 0)
    assert made == ["cpu"] * 2


def test_contents_of_attention_kwargs_go_to_the_original(model, made):
    model(**inputs(), attention_kwargs={"scale": 1.0})
    assert not made
    with pytest.raises(TypeError, match="unknown"):
        model(**inputs(), unknown=3)


def test_inputs_elsewhere_or_of_other_kinds_go_to_the_original(model, made):
    class Named(Tensor):
        pass

    given = inputs()
    model(**given | {"hidden_states": given["hidden_states"].as_subclass(Named)})
    for elsewhere in (("timestep",), tuple(given)):
        moved = given | {key: given[key].to("meta") for key in elsewhere}
        with pytest.raises(RuntimeError) as expected:
            plain(model, **moved)
        with pytest.raises(RuntimeError) as found:
            model(**moved)
        assert str(found.value) == str(expected.value)
    assert not made


HOOKS = {
    "forward hook": (lambda m: m.blocks[1].ffn.register_forward_hook(lambda _, __, out: 2 * out), "blocks.1.ffn"),
    "pre-hook": (lambda m: m.proj_out.register_forward_pre_hook(lambda _, given: (2 * given[0],)), "proj_out"),
    "first block cache": (lambda m: m.enable_cache(FirstBlockCacheConfig(threshold=-1.0)), "blocks.0"),
    "attention broadcast": (
        lambda m: m.enable_cache(
            PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500)
        ),
        "another package has replaced",
    ),
    "group offloading": (
        lambda m: apply_group_offloading(m, torch.device("cpu"), torch.device("cpu"), "block_level", 1),
        "another package has replaced",
    ),
    "other forward": (lambda m: setattr(m.blocks[0].norm1, "forward", lambda x: 2 * x), "replaced the forward of"),
    "compiled block": (lambda m: m.blocks[0].compile(backend="eager"), "blocks.0 (WanTransformerBlock) is compiled"),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_run_in_the_original(model, made, hook):
    if hook == "group offloading":
        pytest.importorskip("accelerate")
    assert_right(model, 0)
    add, reason = HOOKS[hook]
    add(model)
    if hook == "first block cache":
        with model.cache_context("cond"):
            assert_left_alone(model, made, reason)
    else:
        assert_left_alone(model, made, reason)
    other = random_transformer()
    add(other)
    report = aapt_fast.patch(other, attention=False, cuda_graph=True)
    assert not report.replaced and reason in report.left_alone[0].what and not is_swapped(other)


def test_hooks_that_are_gone_are_no_reason(model, made):
    hook = model.proj_out.register_forward_hook(lambda _, __, out: 2 * out)
    model(**inputs())
    hook.remove()
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    model.disable_cache()
    model.forward = model.forward  # as a hook on the model itself leaves it
    assert_right(model, 0, 1)
    assert made == ["cpu"] and aapt_fast.explain(model).parts() == {"cuda_graph"}


def test_hooks_on_the_model_itself_run_around_a_replay(model, made):
    model.register_forward_hook(lambda _, __, out: (2 * out.sample,))
    for seed in (0, 1):
        assert torch.equal(model(**inputs(seed))[0], 2 * plain(model, **inputs(seed)))
    assert made == ["cpu"]


def test_hooks_on_every_module_run_in_the_original(model, made):
    assert_right(model, 0)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert_left_alone(model, made, "torch runs a hook with every module")
    finally:
        handle.remove()


class Numbers(nn.Module):
    """What it computes is decided by a number that nobody but itself knows."""

    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Doubled(WanTransformer3DModel):
    """Somebody's own variant."""

    factor = 2.0

    def forward(self, *arguments, **options):
        return (self.factor * super().forward(*arguments, **options)[0],)


def test_modules_of_other_packages_are_not_recorded(model, made):
    model.condition_embedder.act_fn = Numbers()
    assert_left_alone(model, made, "condition_embedder.act_fn (Numbers) is of tests.integrations.test_recorded")
    report = aapt_fast.patch(Doubled(**random_transformer().config).eval(), attention=False, cuda_graph=True)
    assert "the model is of tests.integrations" in report.left_alone[0].what


def test_processors_and_weights_of_other_packages_are_not_recorded(model, made):
    class Own:
        def __call__(self, attn, x, *_):
            return 0 * x

    class Packed(nn.Parameter):
        pass

    model.blocks[0].attn1.set_processor(Own())
    assert_left_alone(model, made, "blocks.0.attn1 (WanAttention) has a processor of its own, Own")
    model = patched(random_transformer())
    model.proj_out.weight = Packed(model.proj_out.weight, requires_grad=False)
    assert_left_alone(model, made, "proj_out (Linear) has weights of type Packed")


def test_compiled_calls_go_through_the_original(model, made):
    expected = plain(model, **inputs())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(**inputs()).sample, expected) and not made
    assert_right(model, 0)
    assert torch.equal(compiled(**inputs()).sample, expected) and made == ["cpu"]


def test_within_another_recording_and_under_modes_the_original_runs(model, made):
    given = inputs()
    outer = record_on_cpu(lambda: model(**given, return_dict=False)[0], torch.device("cpu"))
    expected = plain(model, **inputs(1))
    for key, value in inputs(1).items():
        given[key].copy_(value)
    assert torch.equal(outer.replay(), expected) and not made
    assert_right(model, 0)
    with FlopCounterMode(display=False) as counter:
        model(**given)
    assert counter.get_total_flops() > 0 and made == ["cpu"]
    traced = torch.jit.trace(lambda *x: model(*x, return_dict=False)[0], tuple(given.values()), check_trace=False)
    assert_near(traced(*inputs(2).values()), plain(model, **inputs(2)), 1e-5)
    assert made == ["cpu"]


# ---- around it ----


def test_recording_that_fails_says_how_to_do_without(model, monkeypatch, made):
    forward = nn.SiLU.forward
    monkeypatch.setattr(nn.SiLU, "forward", lambda self, x: forward(self, x) * float(x.abs().max() >= 0))
    message = "reads a value back to the host .*unpatch, then patch with cuda_graph=False"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            model(**inputs())
    assert not vars(model)[KEPT] and torch.is_autocast_cache_enabled()
    monkeypatch.undo()
    monkeypatch.setitem(graph.RECORDERS, "cpu", record_on_cpu)
    assert_right(model, 0, 1)
    aapt_fast.unpatch(model)
    assert_right(model, 0)


def test_unpatch_gives_the_methods_back_and_frees_the_recordings(made):
    model = random_transformer()
    keys, attributes = list(model.state_dict()), set(vars(model))
    patched(model), patched(model)
    assert_right(model, 0)
    assert list(model.state_dict()) == keys and len(vars(model)[KEPT]) == 1
    aapt_fast.unpatch(model), aapt_fast.unpatch(model)
    assert type(model) is WanTransformer3DModel and set(vars(model)) == attributes
    assert_right(model, 0)
    assert made == ["cpu"]


def test_copies_and_pickles_record_their_own(model, made, tmp_path):
    assert_right(model, 0)
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_swapped(other) and KEPT not in vars(other)
        other.scale_shift_table = nn.Parameter(2 * model.scale_shift_table, requires_grad=False)
        assert other is model or torch.equal(other(**inputs()).sample, plain(other, **inputs()))
    torch.save(model, tmp_path / "model.pt")
    assert_right(torch.load(tmp_path / "model.pt", weights_only=False), 0)
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert list(load_file(file)) == sorted(random_transformer().state_dict())
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "WanTransformer3DModel"


def test_attributes_handed_on_do_not_share_recordings(model, made):
    assert_right(model, 0)
    other = random_transformer()
    patched(other)
    vars(other).update({KEPT: vars(model)[KEPT]})
    other.proj_out.weight.mul_(2)
    assert_right(other, 0)
    assert_right(model, 0)
    assert made == ["cpu"] * 2


def test_hooks_that_kept_the_method_work_after_unpatch(model, made):
    kept = model.forward
    wrapped = SimpleNamespace(calls=0)

    def forward(*arguments, **options):
        wrapped.calls += 1
        return kept(*arguments, **options)

    model.forward = forward
    assert_left_alone(model, made, "another package has replaced the forward of the model,")
    aapt_fast.unpatch(model)
    assert_right(model, 0)
    model.forward = kept  # as a hook leaves it that is gone
    assert_right(model, 0)
    assert wrapped.calls == 2 and not made


def test_threads_take_turns(model):
    expected = [plain(model, **inputs(seed)) for seed in range(4)]
    wrong: list[int] = []

    def calls(seed: int) -> None:
        for _ in range(5):
            if not torch.equal(model(**inputs(seed)).sample, expected[seed]):
                wrong.append(seed)

    model(**inputs())
    threads = [threading.Thread(target=calls, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- what is said ----


def test_it_is_offered_but_off_by_default(made):
    model = random_transformer()
    for report in (aapt_fast.explain(model), aapt_fast.patch(model)):
        (finding,) = [f for f in report.left_alone if f.part == "cuda_graph"]
        assert (finding.where, finding.kind) == ("", "WanTransformer3DModel.forward")
        assert finding.what == recorded_forward.UNASKED
    assert "no GPU has run it" in finding.what and "cuda_graph=True" in finding.what
    assert not is_swapped(model) and not aapt_fast.patch(model, attention=False, cuda_graph=False).left_alone
    assert aapt_fast.patch(model, attention=False, strict=True).left_alone == (finding,)


def test_patch_without_it_leaves_an_earlier_one(model):
    for asked in (None, True):
        report = aapt_fast.patch(model, attention=False, cuda_graph=asked)
        assert [f.part for f in report.replaced] == ["cuda_graph"] and not report.left_alone
    assert not aapt_fast.patch(model, attention=False, cuda_graph=False).replaced and is_swapped(model)


def test_a_cpu_records_nothing(made, monkeypatch):
    monkeypatch.delitem(graph.RECORDERS, "cpu")
    model = random_transformer()
    (finding,) = aapt_fast.patch(model, attention=False, cuda_graph=True).left_alone
    assert finding.what == "CUDA graphs are for GPUs, and it is on cpu: patch it where it is to run"
    assert not is_swapped(model)
    (finding,) = aapt_fast.patch(model, attention=False).left_alone
    assert recorded_forward.UNASKED in finding.what and "it is on cpu" in finding.what
    with pytest.raises(RuntimeError, match="strict: expected everything asked for to be replaced"):
        aapt_fast.patch(model, attention=False, cuda_graph=True, strict=True)
    aapt_fast.patch(model, attention=False, strict=True)


def test_a_model_that_has_moved_says_so(model, monkeypatch, made):
    assert_right(model, 0)
    model.to("meta")
    assert not vars(model)[KEPT]
    assert "and it is on meta" in str(aapt_fast.explain(model))
