"""What the merge stage tells of itself: tokens, a rival, sensitivities."""

from collections.abc import Callable
from dataclasses import replace

from helpers.merging import config
from vitcompress.measure.cost import macs
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.merge.rival import lower_resolution
from vitcompress.stages.merge.stage import merge, sensitivity

MakeVit = Callable[..., VitModel]


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
    pixels = context.shown(4).pixels
    models = (context.dense, result.model)
    dense, merged = (model.module(pixels).argmax(-1).tolist() for model in models)
    answers = (
        " → ".join(map(str, dict.fromkeys(pair))) for pair in zip(dense, merged, strict=True)
    )
    assert [row.caption.replace("class ", "") for row in gallery.rows] == [
        f"{image}: {answer}" for image, answer in zip(context.images.names, answers, strict=False)
    ]
    judged = replace(context.images, names=context.images.names[::-1])
    result = merge(
        deep, config(schedule=[15, 15, 15], images=16), replace(context, evaluation=judged)
    )
    (gallery,) = result.galleries
    assert [row.caption.split(":")[0] for row in gallery.rows] == list(judged.names[:4])
    assert gallery.columns[1:] == ("after block 0: 14 tokens",)


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


def test_sensitivities_name_blocks(deep: VitModel, context: Context) -> None:
    rows = sensitivity(deep, config(budget={"macs": 0.7}, images=16), context).rows
    assert [row["block"] for row in rows] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(row["kl_at_60%"] > 0 for row in rows)
