"""The prune stage on a tiny model."""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import onnx
import pytest
import torch
from torch import Tensor, nn

from helpers.models import images_of, kl, rebuilt
from helpers.pruning import configured, run
from vitcompress import registry
from vitcompress.errors import InputError
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.measure import cost, latencies
from vitcompress.model.architecture import VitModel, set_tail, stored_tensors
from vitcompress.model.sizes import blocks, sizes_of
from vitcompress.stages.context import Context, Shared
from vitcompress.stages.prune.config import SALIENCIES, Budget
from vitcompress.stages.prune.stage import plan, prune, sensitivity
from vitcompress.stages.prune.study import study
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import quantize

MakeVit = Callable[..., VitModel]
MakeContext = Callable[..., Context]
InFreshProcess = Callable[[VitModel, Tensor], Tensor]
EVERYTHING = ("query_key", "value", "hidden", "heads", "attention", "mlp")


def with_tail(vit: VitModel) -> VitModel:
    set_tail(vit.module, 1)
    tail = vit.architecture.model_copy(update={"tail_tokens": 1})
    return VitModel(vit.module, tail, vit.preprocess)


def test_a_budget_of_everything_changes_nothing(
    vit: VitModel, context: Context, pixels: Tensor
) -> None:
    model = run(vit, context, budget={"macs": 1.0}).model
    assert torch.equal(model.module(pixels), vit.module(pixels))
    assert cost.macs(model) == cost.macs(vit)


@pytest.mark.parametrize("unit", ["macs", "params", "bytes"])
@pytest.mark.parametrize("share", [0.9, 0.6])
def test_the_budget_is_met_within_a_step(
    unit: str, share: float, vit: VitModel, context: Context
) -> None:
    result = run(vit, context, budget={unit: share})
    model = result.model
    before, after = (
        cost.macs(m) if unit == "macs" else cost.parameters(m.module) for m in (vit, model)
    )
    step = 0.03  # the dimensions of one structure of one block of two
    assert share - step < after / before <= share
    assert result.facts[f"{unit}_budget"] == share


def test_tensors_are_smaller_and_described(vit: VitModel, context: Context, pixels: Tensor) -> None:
    result = run(with_tail(vit), context, budget={"macs": 0.6}, structures=EVERYTHING)
    model = result.model
    assert cost.parameters(model.module) < cost.parameters(vit.module)
    described = model.architecture.blocks
    assert described == tuple(sizes_of(block) for block in blocks(model.module))
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))
    for row in result.table("structures").rows:
        block, kind = int(row["structure"].split(".")[1]), row["structure"].split(".")[2]
        sizes = described[block]
        if kind == "hidden" and sizes.hidden is not None:
            assert sizes.hidden == row["after"] == row["kept"] * row["before"]
        elif kind in ("query_key", "value", "heads") and sizes.attention is not None:
            assert getattr(sizes.attention, kind) == row["after"]


def test_a_fresh_process_gives_the_same_logits(
    vit: VitModel, context: Context, pixels: Tensor, in_fresh_process: InFreshProcess
) -> None:
    model = run(vit, context).model
    assert torch.equal(in_fresh_process(model, pixels), model.module(pixels))


def test_the_onnx_file_is_narrower_and_agrees(
    vit: VitModel, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    model = run(with_tail(vit), context, budget={"macs": 0.5}, structures=EVERYTHING).model
    file = tmp_path / "model.onnx"
    export_onnx(model, file, {})
    check_parity(file, model, pixels, 1)
    graph = onnx.load(file).graph
    stored = [tuple(i.dims) for i in graph.initializer if len(i.dims) == 2]
    for block in blocks(model.module):
        for linear in (m for m in block.modules() if isinstance(m, torch.nn.Linear)):
            assert (linear.in_features, linear.out_features) in stored or (
                linear.out_features,
                linear.in_features,
            ) in stored
    kept, dense = (
        sum(m.weight.numel() for m in v.module.modules() if isinstance(m, torch.nn.Linear))
        for v in (model, vit)
    )
    assert sum(rows * columns for rows, columns in stored) == kept
    stem = vit.module.patch_embed.proj.weight.numel()
    assert kept - stem < 0.8 * (dense - stem)
    for matrix in (onnx.numpy_helper.to_array(i) for i in graph.initializer if len(i.dims) == 2):
        assert (matrix != 0).any(0).all()
        assert (matrix != 0).any(1).all()


def test_a_pruned_model_can_be_quantized(
    vit: VitModel, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    model = run(vit, context).model
    small = quantize(model, QuantizeConfig(rounding="nearest"), context).model
    assert torch.equal(rebuilt(small)(pixels), small.module(pixels))
    file = tmp_path / "model.onnx"
    export_onnx(small, file, {})
    check_parity(file, small, pixels, 1)


def test_compensation_is_worth_it(vit: VitModel, make_context: MakeContext) -> None:
    context = make_context()
    pixels = images_of(context)
    found = {
        compensate: kl(vit.module, run(vit, context, compensate=compensate).model.module, pixels)
        for compensate in (True, False)
    }
    assert found[True] < 0.5 * found[False]


def test_measured_widths_are_no_worse_than_even_ones(vit: VitModel, context: Context) -> None:
    # One block that hardly does anything can be narrowed most.
    blocks(vit.module)[0].mlp.fc2.weight.mul_(0.01)
    pixels = images_of(context)
    found = {}
    for allocate in ("measured", "uniform"):
        result = run(vit, context, allocate=allocate)
        model = result.model
        found[allocate] = kl(vit.module, model.module, pixels)
        rows = {row["structure"]: row["kept"] for row in result.table("structures").rows}
        if allocate == "measured":
            assert rows["blocks.0.hidden"] < rows["blocks.1.hidden"]
    assert found["measured"] < found["uniform"]


@pytest.mark.parametrize("saliency", registry.names(SALIENCIES))
@pytest.mark.parametrize("rotate", [True, False])
def test_every_saliency_meets_the_budget(
    saliency: str, rotate: bool, vit: VitModel, context: Context
) -> None:
    result = run(vit, context, saliency=saliency, rotate=rotate)
    model = result.model
    assert cost.macs(model) <= 0.7 * cost.macs(vit)
    assert result.facts["saliency"] == saliency


def test_units_that_do_nothing_go_first(vit: VitModel, context: Context) -> None:
    dead = [3, 50, 77, 101, 140, 141, 142, 255]
    for block in blocks(vit.module):
        block.mlp.fc2.weight[:, dead] = 0
    for saliency in ("obs", "hessian", "taylor"):
        options = {"structures": ("hidden",), "budget": {"macs": 0.99}, "allocate": "uniform"}
        model = run(vit, context, saliency=saliency, **options).model
        left = [sizes_of(block).hidden or 0 for block in blocks(model.module)]
        assert min(left) < 256
        assert min(left) >= 248
        assert kl(vit.module, model.module, images_of(context)) < 1e-5


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_hidden_units_that_are_the_same_become_one(
    name: str, make_vit: MakeVit, make_context: MakeContext, pixels: Tensor
) -> None:
    model = make_vit(name)
    for site in model.anatomy.sites:
        if site.kind == "mlp":
            for tensor in (site.first.weight, site.first.bias):
                for part in tensor.split(site.last.in_features):  # of a gate too
                    part[::2] = part[1::2]
    options = {"structures": ("hidden",), "allocate": "uniform", "compensate": False}
    context = make_context(dense=model)
    folded = run(model, context, saliency="fold", budget={"macs": 0.8}, **options).model
    assert cost.macs(folded) <= 0.8 * cost.macs(model)
    torch.testing.assert_close(folded.module(pixels), model.module(pixels), rtol=1e-4, atol=1e-4)


def test_layer_scale_and_register_tokens_are_no_trouble(
    make_vit: MakeVit, context: Context
) -> None:
    vit = make_vit(init_values=0.1, reg_tokens=2)
    model = run(vit, context, budget={"macs": 0.9}).model
    assert kl(vit.module, model.module, images_of(context)) < 0.05
    kept = run(vit, context, budget={"macs": 1.0}).model
    assert torch.equal(kept.module(images_of(context)), vit.module(images_of(context)))


def test_two_runs_give_equal_tensors(make_vit: MakeVit, make_context: MakeContext) -> None:
    one, other = (run(make_vit(), make_context(resume=False)) for _ in range(2))
    assert (one.facts, one.tables) == (other.facts, other.tables)
    first, second = stored_tensors(one.model), stored_tensors(other.model)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("first", [0.9, 0.7])
def test_what_was_found_out_serves_other_budgets(
    first: float, vit: VitModel, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, measured = run(vit, make_context(), budget={"macs": 0.8}), Mock(wraps=study)
    monkeypatch.setattr("vitcompress.stages.prune.stage.study", measured)
    shared = make_context(shared=Shared())
    for share in (first, 0.8):
        torch.manual_seed(0)
        after = run(vit, shared, budget={"macs": share})
    assert measured.call_count == 1
    assert after.facts == alone.facts
    pairs = zip(
        stored_tensors(after.model).items(), stored_tensors(alone.model).items(), strict=True
    )
    assert all(one[0] == other[0] and torch.equal(one[1], other[1]) for one, other in pairs)
    run(vit, shared, budget={"macs": 0.8}, rotate=False)
    assert measured.call_count == 2


def test_the_model_given_is_not_changed(vit: VitModel, context: Context) -> None:
    vit = with_tail(vit)
    before = vit.fingerprint()
    run(vit, context, structures=EVERYTHING)
    sensitivity(vit, configured(), context)
    plan(vit, configured())
    assert vit.fingerprint() == before
    assert blocks(vit.module)[-1].tokens == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vit.module.modules())


def test_a_plan_meets_the_budget_without_images(vit: VitModel) -> None:
    for budget in ({"macs": 0.7}, {"params": 0.8}, {"latency": 0.7}):
        planned = plan(vit, configured(budget=budget)).model
        described = [sizes_of(block) for block in blocks(planned.module)]
        assert described == list(planned.architecture.blocks or ())
        if "params" in budget:
            assert cost.parameters(planned.module) <= 0.8 * cost.parameters(vit.module)
        else:
            assert 0.6 < cost.macs(planned) / cost.macs(vit) <= 0.7


def test_a_plan_refuses_no_budget_of_latency(vit: VitModel) -> None:
    result = plan(vit, configured(budget={"latency": 0.01}))
    planned = result.model
    assert planned is vit
    assert result.facts["widths"] == "known when latencies are measured"


def test_a_latency_budget_spends_measured_milliseconds(
    vit: VitModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def by_size(parts: dict[str, Any], _: str) -> dict[str, float]:
        seen.extend({part.size for part in parts.values()})
        return {name: float(sum(map(int, name.split()))) for name in parts}

    monkeypatch.setattr(latencies, "_milliseconds", by_size)
    monkeypatch.setattr(latencies.LatencyTable, "rest", lambda *_: 10.0)
    model = run(vit, context, budget={"latency": 0.6}).model
    whole, left = (
        10.0 + sum(s.attention.query_key + s.attention.value + s.hidden for s in sizes)
        for sizes in (
            [sizes_of(block) for block in blocks(of.module)]  # type: ignore[misc]
            for of in (vit, model)
        )
    )
    assert 0.55 < left / whole <= 0.6
    assert len(seen) == 2  # one table of attentions, one of MLPs
    run(vit, context, budget={"latency": 0.6})
    assert len(seen) == 2  # kept in the cache


def test_sensitivities_rise_with_what_is_removed(vit: VitModel, context: Context) -> None:
    rows = sensitivity(vit, configured(), context).rows
    assert len(rows) == 6
    for row in rows:
        costs = [v for k, v in row.items() if k.startswith("kl_less") and v is not None]
        assert costs == sorted(costs)
        assert costs[-1] > 0


def test_a_budget_below_the_floors_names_the_least(vit: VitModel, context: Context) -> None:
    with pytest.raises(InputError, match=r"stages\.prune\.budget\.macs: 0\.1 .* is the least") as e:
        run(vit, context, budget={"macs": 0.1})
    least = float(str(e.value).split("floor ")[1].split()[0])
    model = plan(vit, configured(budget={"macs": least})).model
    assert cost.macs(model) == pytest.approx(least * cost.macs(vit), rel=1e-3)


WHOLE: dict[str, dict[str, Any]] = {
    "steps as wide as a head": {"multiple": 32, "structures": ["query_key", "value", "hidden"]},
    "a floor of everything": {"floor": 1.0, "structures": ["query_key", "heads", "mlp"]},
}


@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_structures_that_cannot_become_narrower_stay(
    options: dict[str, Any], vit: VitModel, context: Context
) -> None:
    given = {"budget": {"macs": 0.9}, **options}
    assert cost.macs(plan(vit, configured(**given)).model) <= 0.9 * cost.macs(vit)
    result = run(vit, context, **given)
    assert cost.macs(result.model) <= 0.9 * cost.macs(vit)
    rows = {row["structure"]: row["kept"] for row in result.table("structures").rows}
    assert rows["blocks.0.query_key"] == rows["blocks.1.query_key"] == 1
    for row in sensitivity(vit, configured(**given), context).rows:
        assert "query_key" not in row["structure"] or row["kl_less_12.5%"] is None


def test_where_nothing_can_go_the_budget_is_refused(vit: VitModel, context: Context) -> None:
    for each in (plan, partial(prune, context=context)):
        with pytest.raises(InputError, match=r"macs: 0\.9 cannot be met; .* 1 of the dense"):
            each(vit, configured(floor=1.0, budget={"macs": 0.9}))


def test_a_narrow_model_is_narrowed_again(vit: VitModel, context: Context, pixels: Tensor) -> None:
    once = run(vit, context, budget={"macs": 0.8}, structures=EVERYTHING).model
    config = configured(budget={"macs": 0.6}, multiple=5)
    assert cost.macs(plan(once, config).model) <= 0.6 * cost.macs(vit)
    twice = prune(once, config, context).model
    assert cost.macs(twice) <= 0.6 * cost.macs(vit)
    assert torch.equal(rebuilt(twice)(pixels), twice.module(pixels))


@pytest.mark.parametrize(
    ("size", "step"), [(8, 1), (16, 2), (32, 4), (48, 4), (56, 4), (64, 8), (80, 8)]
)
def test_steps_are_eighths_of_small_heads(size: int, step: int) -> None:
    config = configured(multiple=None)
    assert config.step("query_key", size) == config.step("value", size) == step
    assert config.step("hidden", size) == config.step("embedding", size) == 8
    assert config.step("heads", size) == 1
    assert configured(multiple=3).step("value", size) == 3


def test_what_cannot_be_pruned_is_named(
    make_vit: MakeVit, context: Context, make_context: MakeContext
) -> None:
    bare = make_vit(qk_norm=True)
    for block in blocks(bare.module):
        block.attn.q_norm = block.attn.k_norm = nn.LayerNorm(32, elementwise_affine=False)
    with pytest.raises(InputError, match=r"query_key cannot be narrowed in .* take it out"):
        plan(bare, configured())
    small = quantize(make_vit(), QuantizeConfig(rounding="nearest"), context).model
    with pytest.raises(InputError, match="before quantize"):
        plan(small, configured())
    few = make_context(calibration=context.images.subset(range(5)))
    with pytest.raises(InputError, match="5 calibration images are too few"):
        run(make_vit(), few)


@pytest.mark.parametrize("budget", [{}, {"macs": 0.5, "params": 0.5}])
def test_a_budget_has_one_key(budget: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Budget.model_validate(budget)


@pytest.mark.parametrize("saliency", ["hessian", "obs"])
def test_no_pass_stays_in_memory(saliency: str, vit: VitModel, context: Context) -> None:
    gc.collect()
    gc.disable()
    try:
        study(vit, configured(saliency=saliency), context)
        held = [o for o in gc.get_objects() if type(o) is Tensor and o.grad_fn]
    finally:
        gc.enable()
    assert not held
