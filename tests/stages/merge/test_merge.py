"""The merge stage: budgets, schedules and the search, for models of any task."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.merging import config, kept
from vitcompress.errors import InputError
from vitcompress.measure.cost import macs
from vitcompress.measure.latencies import LatencyTable
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.merge import search
from vitcompress.stages.merge.stage import merge, plan
from vitcompress.stages.quantize import stage as quantize
from vitcompress.stages.quantize.config import QuantizeConfig

MakeVit = Callable[..., VitModel]


@pytest.mark.parametrize("method", ["fisher", "diffrate", "tome"])
def test_a_search_meets_its_budget(method: str, deep: VitModel, context: Context) -> None:
    result = merge(deep, config(method=method, budget={"macs": 0.7}, images=16), context)
    found = result.model
    assert macs(found) <= 0.7 * macs(deep)
    assert macs(found) == pytest.approx(result.facts["macs_ratio"] * macs(deep))
    kept = found.architecture.merging.kept  # type: ignore[union-attr]
    assert [row["kept"] for row in result.table("blocks").rows] == list(kept)
    assert all(row["macs_ratio"] <= 0.7 for row in result.table("candidates").rows)


def test_what_each_step_saves_and_costs_is_told(deep: VitModel, context: Context) -> None:
    result = merge(deep, config(budget={"macs": 0.7}, images=16), context)
    schedule, told = kept(result.model), result.table("steps").rows
    names = deep.anatomy.block_names
    coming = (deep.anatomy.tokens, *schedule)
    steps = [i for i, after in enumerate(schedule) if after < coming[i]]
    assert [row["block"] for row in told] == [names[i] for i in steps]
    last = steps[-1]
    assert told[-1]["share_kept"] == pytest.approx(schedule[last] / coming[last])
    without = [*schedule[:last], *[coming[last]] * (len(schedule) - last)]
    other = merge(deep, config(schedule=without), context)
    saved = other.facts["macs_ratio"] - result.facts["macs_ratio"]  # type: ignore[operator]
    assert told[-1]["saved_macs_ratio"] == pytest.approx(saved)
    assert all(row["saved_macs_ratio"] > 0 and row["costs_kl"] != 0 for row in told)  # type: ignore[operator]


def test_a_search_is_repeatable_and_cached(
    deep: VitModel, make_context: Callable[..., Context], pixels: Tensor
) -> None:
    wanted = config(budget={"macs": 0.7}, images=16)
    first = merge(deep, wanted, make_context(resume=False))
    again = merge(deep, wanted, make_context(resume=False))
    assert torch.equal(first.model.module(pixels), again.model.module(pixels))
    cached = merge(deep, wanted, make_context(resume=True))
    assert (cached.facts, cached.tables) == (first.facts, first.tables)
    assert torch.equal(first.model.module(pixels), cached.model.module(pixels))


def test_a_step_has_to_be_worth_its_time(
    deep: VitModel, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {}
    for price in (0.0, 10.0):
        monkeypatch.setattr(search, "_STEP", price)
        result = merge(deep, config(budget={"macs": 0.7}, images=16), make_context())
        found = result.model
        steps[price] = len(set(kept(found)) - {17})
        rows = {row["candidate"]: row for row in result.table("candidates").rows}
        assert rows[result.facts["schedule"]]["steps"] == steps[price]
    assert steps[10.0] < steps[0.0]


def test_a_few_images_are_counted_exactly_and_some_held_back(
    deep: VitModel, context: Context
) -> None:
    result = merge(deep, config(budget={"macs": 0.7}, images=10), context)
    assert result.facts["searched_images"] == 6  # in batches of two
    assert all(row["search_kl"] != row["held_back_kl"] for row in result.table("candidates").rows)


def test_the_model_given_stays_as_it_was(deep: VitModel, context: Context, pixels: Tensor) -> None:
    before = deep.module(pixels)
    merge(deep, config(budget={"macs": 0.7}, images=16), context)
    assert torch.equal(deep.module(pixels), before)


@pytest.mark.parametrize("schedule", ["constant", "decreasing", "published", "stepped", "search"])
def test_a_plan_needs_no_images(schedule: str, deep: VitModel) -> None:
    planned = plan(deep, config(budget={"macs": 0.75}, schedule=schedule)).model
    assert 0.6 * macs(deep) < macs(planned) <= 0.75 * macs(deep)


def test_a_plan_refuses_no_budget_that_a_search_can_meet(
    make_vit: MakeVit, context: Context
) -> None:
    shallow = make_vit(depth=3)  # where the published shape, which spares the first block, ends
    wanted = config(method="tome", budget={"macs": 0.62}, images=16)
    planned = plan(shallow, wanted).model
    found = merge(shallow, wanted, context).model
    assert macs(planned) <= 0.62 * macs(shallow)
    assert macs(found) <= 0.62 * macs(shallow)


def test_a_plan_refuses_no_budget_of_latency(deep: VitModel) -> None:
    planned = plan(deep, config(method="tome", budget={"latency": 0.01})).model
    assert macs(planned) < macs(deep)


def test_latencies_of_few_tokens_are_timed(
    make_vit: MakeVit, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatencyTable, "attention", lambda *_: 1.0)
    monkeypatch.setattr(LatencyTable, "mlp", lambda *_: 1.0)
    monkeypatch.setattr(
        LatencyTable, "rest", lambda _, model, branches: 0.001 * macs(model) - branches
    )
    few = make_vit(patch_size=16)
    loose = config(method="tome", budget={"latency": 1.0}, schedule="constant")
    assert kept(merge(few, loose, context).model) == (5, 5)


def test_a_schedule_can_be_given(deep: VitModel, context: Context, pixels: Tensor) -> None:
    result = merge(deep, config(schedule=[15, 12, 10], images=16), context)
    found = result.model
    assert found.architecture.merging.kept == (15, 12, 10, 10)  # type: ignore[union-attr]
    assert result.facts["schedule"] == "explicit"
    assert found.module(pixels).isfinite().all()


@pytest.mark.parametrize("options", [{"global_pool": "avg"}, {"global_pool": "map"}])
def test_models_without_a_class_token_merge(
    options: dict[str, Any], make_vit: MakeVit, context: Context
) -> None:
    model = make_vit(depth=3, class_token=False, **options)
    found = merge(model, config(budget={"macs": 0.8}, images=16), context).model
    assert macs(found) <= 0.8 * macs(model)
    assert found.architecture.tail_tokens is None


def test_a_budget_of_latency_is_met_by_what_was_measured(
    deep: VitModel, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Time that follows the work, so that the test does not depend on the machine.
    monkeypatch.setattr(
        LatencyTable, "attention", lambda _, width, tokens, *__: float(tokens.first + tokens.last)
    )
    monkeypatch.setattr(LatencyTable, "mlp", lambda _, width, tokens, *__: 2.0 * tokens)
    monkeypatch.setattr(
        LatencyTable, "rest", lambda _, model, branches: 0.001 * macs(model) - branches
    )
    wanted = config(budget={"latency": 0.8}, schedule="constant", images=16)
    result = merge(deep, wanted, make_context())
    found = result.model
    assert result.facts["latency_ratio"] <= 0.8
    loose = config(budget={"latency": 0.95}, schedule="constant", images=16)
    more = merge(deep, loose, make_context()).model
    assert sum(kept(found)) < sum(kept(more)) <= 4 * 17
    with pytest.raises(InputError, match=r"stages\.merge\.budget\.latency: fisher .* below"):
        merge(deep, config(budget={"latency": 0.01}, images=16), make_context())


def test_a_schedule_can_drop_tokens_before_it_merges(deep: VitModel, context: Context) -> None:
    options = {"method": "diffrate", "schedule": [[16, 15], 12, [11, 10]]}
    result = merge(deep, config(**options), context)
    model = result.model
    assert result.facts["kept"] == "15, 12, 10, 10"
    merging = model.architecture.merging
    assert merging is not None
    assert (merging.kept, merging.dropped) == ((15, 12, 10, 10), (1, 0, 1, 0))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_classes": 0}, "distance"),
        ({"num_classes": 0, "init_values": 0.5, "reg_tokens": 2}, "distance"),
        ({"num_classes": 0, "global_pool": "avg", "class_token": False}, "distance"),
        ({"num_classes": 0, "global_pool": ""}, "distance"),
        ({"num_classes": 1}, "kl"),
    ],
)
def test_models_of_other_tasks_merge(
    options: dict[str, Any], word: str, make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    model = make_vit(depth=3, **options)
    context = replace(context, dense=model)
    result = merge(model, config(budget={"macs": 0.75}, images=16), context)
    found, task = result.model, model.task
    assert macs(found) <= 0.75 * macs(model)
    rows = {row["candidate"]: row for row in result.table("candidates").rows}
    best = rows[result.facts["schedule"]]
    assert best[f"held_back_{word}"] == pytest.approx(best[f"held_back_root_{word}"] ** 2, rel=0.5)
    assert f"{word}_at_80%" in result.table("sensitivities").rows[0]
    if options.get("global_pool") == "":  # of a smaller image there are fewer tokens
        assert "lower_resolution" not in {table.name for table in result.tables}
    else:
        assert set(task.against_dense) <= set(result.table("lower_resolution").rows[0])
    assert float(task.distance(found.module(pixels), model.module(pixels)).mean()) < 0.5


def test_a_headless_model_reads_what_its_task_means(make_vit: MakeVit, context: Context) -> None:
    """Lengths of embeddings say nothing: neither do they change what is read and searched."""
    model = make_vit(depth=3, num_classes=0)
    found = merge(model, config(budget={"macs": 0.8}, images=16), context)
    longer = copy.deepcopy(model.module)
    longer.norm.weight.mul_(4)
    longer.norm.bias.mul_(4)
    again = merge(replace(model, module=longer), config(budget={"macs": 0.8}, images=16), context)
    assert kept(found.model) == kept(again.model)
    for name, reader in found.model.module.blocks.named_buffers(recurse=False):
        assert torch.allclose(reader, again.model.module.blocks.get_buffer(name), atol=1e-4)


def test_merged_models_can_be_quantized(
    deep: VitModel, make_context: Callable[..., Context], pixels: Tensor
) -> None:
    context = make_context()
    found = merge(deep, config(budget={"macs": 0.8}, images=16), context).model
    quantized = quantize.quantize(found, QuantizeConfig(rounding="nearest"), context).model
    assert quantized.architecture.merging == found.architecture.merging
    assert float((quantized.module(pixels) - found.module(pixels)).abs().mean()) < 0.5
