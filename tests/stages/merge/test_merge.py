"""The merge stage: budgets, schedules, the search and what it refuses."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor

from vitcompress.data.images import ImageSet
from vitcompress.errors import InputError
from vitcompress.measure.branches import LatencyTable
from vitcompress.measure.cost import macs
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import adopt
from vitcompress.model.sizes import resize, sizes_of
from vitcompress.stages.context import Context
from vitcompress.stages.merge import search
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.rival import lower_resolution
from vitcompress.stages.merge.stage import merge, plan, sensitivity
from vitcompress.stages.prune import stage as prune
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.quantize import stage as quantize
from vitcompress.stages.quantize.config import QuantizeConfig

MakeVit = Callable[..., VitModel]
OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


def config(**options: Any) -> MergeConfig:
    return MergeConfig.model_validate({"method": "fisher", **options})


@pytest.fixture
def deep(make_vit: MakeVit) -> VitModel:
    return make_vit(depth=4)


@pytest.mark.parametrize("method", ["fisher", "diffrate", "tome"])
def test_a_search_meets_its_budget(method: str, deep: VitModel, context: Context) -> None:
    result = merge(deep, config(method=method, budget={"macs": 0.7}, images=16), context)
    found = result.model
    assert macs(found) <= 0.7 * macs(deep)
    assert macs(found) == pytest.approx(result.facts["macs_ratio"] * macs(deep))
    kept = found.architecture.merging.kept  # type: ignore[union-attr]
    assert [row["kept"] for row in result.table("blocks").rows] == list(kept)
    assert all(row["macs_ratio"] <= 0.7 for row in result.table("candidates").rows)


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
    make_vit: MakeVit, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_vit(depth=6)
    steps = {}
    for price in (0.0, 10.0):
        monkeypatch.setattr(search, "_STEP", price)
        result = merge(model, config(budget={"macs": 0.7}, images=16), make_context())
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


def test_a_search_needs_images_to_hold_back(
    deep: VitModel, make_context: Callable[..., Context], images: ImageSet
) -> None:
    damaged = replace(images, fetch=lambda index: images.fetch(index) if index < 3 else b"")
    for few in (images.subset(range(3)), damaged.subset(range(5))):
        context = make_context(calibration=few, max_unreadable=0.9)
        with pytest.raises(InputError, match=r"stages\.merge\.schedule: .* at least 4 calibration"):
            merge(deep, config(budget={"macs": 0.7}), context)


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


def test_a_model_of_one_block_is_refused(make_vit: MakeVit) -> None:
    with pytest.raises(InputError, match=r"stages\.merge: .* has one block"):
        plan(make_vit(depth=1), config(budget={"macs": 0.9}))
    plan(make_vit(depth=1, class_token=False, global_pool="avg"), config(budget={"macs": 0.9}))


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


def test_the_report_shows_tokens(deep: VitModel, context: Context) -> None:
    result = merge(deep, config(schedule=[15, 12, 10], images=16), context)
    (gallery,) = result.galleries
    assert gallery.columns == (
        "input",
        "after block 0: 14 tokens",
        "after block 1: 11 tokens",
        "after block 2: 9 tokens",
    )
    assert all(row.sources[-1].startswith("data:image/png") for row in gallery.rows)
    assert [row.caption for row in gallery.rows] == list(context.images.names[:4])
    judged = replace(context.images, names=context.images.names[::-1])
    result = merge(
        deep, config(schedule=[15, 15, 15], images=16), replace(context, evaluation=judged)
    )
    (gallery,) = result.galleries
    assert [row.caption for row in gallery.rows] == list(judged.names[:4])
    assert gallery.columns[1:] == ("after block 0: 14 tokens",)


def test_a_schedule_can_drop_tokens_before_it_merges(deep: VitModel, context: Context) -> None:
    options = {"method": "diffrate", "schedule": [[16, 15], 12, [11, 10]]}
    result = merge(deep, config(**options), context)
    model = result.model
    assert result.facts["kept"] == "15, 12, 10, 10"
    merging = model.architecture.merging
    assert merging is not None
    assert (merging.kept, merging.dropped) == ((15, 12, 10, 10), (1, 0, 1, 0))


def test_a_lower_resolution_of_the_same_cost_is_the_rival(deep: VitModel, context: Context) -> None:
    result = merge(deep, config(budget={"macs": 0.7}, schedule="constant"), context)
    model = result.model
    ours, rival = result.table("lower_resolution").rows
    smaller = lower_resolution(deep, macs(model))
    assert smaller is not None
    rows, columns = smaller.preprocess.input_size
    assert rival["input_size"] == f"{rows}×{columns}"
    assert rival["macs_ratio"] <= result.facts["macs_ratio"]
    assert macs(smaller) <= macs(model) < macs(deep)
    assert result.facts["compared_images"] == len(context.images) // 4
    assert rival["kl"] > ours["kl"] > 0
    assert lower_resolution(deep, 1) is None


def test_a_budget_that_is_met_already_is_told(deep: VitModel, context: Context) -> None:
    result = merge(deep, config(budget={"macs": 1.0}, schedule="constant"), context)
    assert result.warnings == ("stages.merge: nothing merges, the model is within its budget",)


def kept(model: VitModel) -> tuple[int, ...]:
    assert model.architecture.merging is not None
    return model.architecture.merging.kept


def test_sensitivities_name_blocks(deep: VitModel, context: Context) -> None:
    rows = sensitivity(deep, config(budget={"macs": 0.7}, images=16), context).rows
    assert [row["block"] for row in rows] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(row["kl_at_60%"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": [15, 12]}, r"stages\.merge\.schedule: 2 counts for 3 blocks"),
        (
            {"method": "tome", "schedule": [17, 8, 8]},
            r"schedule: block 1 cannot keep 8 of its 17 tokens; with tome from 9 to 17",
        ),
        ({"schedule": [12, 13, 9]}, r"block 1 cannot keep 13 of its 12 tokens"),
        ({"schedule": [12, 11, 10, 13]}, r"block 3 cannot keep 13 of its 10 tokens"),
        ({"schedule": [[14, 12], 11, 10]}, r"block 0 cannot drop 3 tokens .* only diffrate drops"),
        (
            {"method": "diffrate", "schedule": [[12, 13], 11, 10]},
            r"block 0 cannot drop 5 tokens and keep 13 of 17 with diffrate",
        ),
        ({"budget": {"macs": 0.1}}, r"stages\.merge\.budget\.macs: fisher .* does not go below"),
        ({"schedule": "deit_small@2.9"}, r"schedule: deit_small@2.9 is for 12 blocks"),
    ],
)
def test_what_cannot_be_met_is_refused(
    options: dict[str, Any], message: str, deep: VitModel, context: Context
) -> None:
    with pytest.raises(InputError, match=message):
        merge(deep, config(**options), context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cls_only_tail"}, "a stage of its own: write `type: tail`"),
        ({}, "budget: missing; .* or write `type: tail`"),
        ({"method": "fisher"}, "budget: missing"),
        ({"schedule": "linear"}, "'linear' is none of search, constant"),
        ({"schedule": "linear", "budget": {"macs": 0.5}}, "'linear' is none of search, constant"),
        ({"budget": {}}, "give either macs or latency"),
        ({"budget": {"macs": 0.5, "latency": 0.5}}, "give either macs or latency"),
        ({"method": "fisher", "schedule": [9], "budget": {"macs": 0.5}}, "take one of the two"),
    ],
)
def test_configs_that_contradict_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MergeConfig.model_validate(options)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 56, "window_size": 7, "embed_dim": 24, "num_heads": (2, 2, 4, 4)},
            "tokens that sit in windows cannot be merged",
        ),
        ("beit_base_patch16_224", OPTIONS, "the bias of its attention is looked up by position"),
        ("eva02_enormous_patch14_clip_224", OPTIONS, "its norms come after attention and MLP"),
        ("vit_tiny_patch16_224", {**OPTIONS, "dynamic_img_size": True}, None),
        ("vit_base_patch16_rpn_224", OPTIONS, "tokens in other numbers for each image, or blocks"),
        ("levit_128s", {}, "its blocks are not of a kind that is known"),
    ],
)
def test_families_that_cannot_merge_say_why(
    name: str, options: dict[str, Any], reason: str | None, vit: VitModel
) -> None:
    named = vit.architecture.model_copy(update={"timm": name})
    model = replace(vit, module=adopt(timm.create_model(name, **options)), architecture=named)
    if reason is None:
        plan(model, config(budget={"macs": 0.7}))
        return
    with pytest.raises(InputError, match=rf"^stages\.merge: {name}: {reason}.*take the stage out"):
        plan(model, config(budget={"macs": 0.7}))


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


def test_it_comes_before_quantize(vit: VitModel, context: Context) -> None:
    quantized = quantize.plan(vit, QuantizeConfig()).model
    with pytest.raises(InputError, match="put it before quantize"):
        merge(quantized, config(budget={"macs": 0.8}), context)


def test_merged_models_can_be_quantized(
    deep: VitModel, make_context: Callable[..., Context], pixels: Tensor
) -> None:
    context = make_context()
    found = merge(deep, config(budget={"macs": 0.8}, images=16), context).model
    quantized = quantize.quantize(found, QuantizeConfig(), context).model
    assert quantized.architecture.merging == found.architecture.merging
    assert float((quantized.module(pixels) - found.module(pixels)).abs().mean()) < 0.5


@pytest.mark.parametrize(
    ("part", "without"), [("attention", {"attention": None}), ("mlp", {"hidden": None})]
)
def test_a_block_without_a_half_is_refused(
    part: str, without: dict[str, None], deep: VitModel
) -> None:
    sizes = [sizes_of(block) for block in deep.module.blocks]
    sizes[1] = sizes[1].model_copy(update=without)
    resize(deep.module.blocks[1], sizes[1])
    blocks = deep.architecture.model_copy(update={"blocks": tuple(sizes)})
    pruned = replace(deep, architecture=blocks)
    with pytest.raises(InputError, match=rf"stages\.merge: a block without its {part} cannot"):
        plan(pruned, config(schedule="constant", budget={"macs": 0.9}))


def test_pruning_comes_first(deep: VitModel, context: Context) -> None:
    merged = plan(deep, config(schedule="constant", budget={"macs": 0.9})).model
    pruning = PruneConfig.model_validate({"budget": {"macs": 0.8}})
    with pytest.raises(InputError, match=r"stages\.prune: put it before merge"):
        prune.plan(merged, pruning)
