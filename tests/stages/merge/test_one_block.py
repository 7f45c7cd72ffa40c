"""Merging in one block alone: by a count or a budget, of mixtures always."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from helpers.merging import config, kept
from vitcompress.errors import InputError
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.measure.cost import macs
from vitcompress.model.architecture import VitModel
from vitcompress.model.merging import token_maps
from vitcompress.stages.context import Context
from vitcompress.stages.merge.stage import merge, plan

MakeVit = Callable[..., VitModel]


@pytest.mark.parametrize("method", ["soft", "soft_grid", "soft_kmeans", "fisher"])
def test_a_block_is_left_with_so_many_tokens(
    method: str, deep: VitModel, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    result = merge(deep, config(method=method, block=1, tokens=6, images=8), context)
    model = result.model
    assert kept(model) == (17, 7, 7, 7)
    assert result.facts["schedule"] == "block 1"
    assert macs(model) == pytest.approx(result.facts["macs_ratio"] * macs(deep))
    places = token_maps(model.module, pixels)[-1]
    assert places.shape == (len(pixels), 16)
    assert int(places.max()) < 6
    save_folder(model, tmp_path)
    assert torch.equal(load_folder(tmp_path).module(pixels), model.module(pixels))


def test_a_budget_leaves_as_many_as_it_allows(deep: VitModel, context: Context) -> None:
    found = kept(merge(deep, config(method="soft", block=1, budget={"macs": 0.7}), context).model)
    assert found[0] == 17 > found[1] == found[-1]
    more = plan(deep, config(method="soft", block=1, tokens=found[1])).model  # without the prefix
    assert macs(more) > 0.7 * macs(deep)


def test_a_search_takes_the_best_block(deep: VitModel, context: Context) -> None:
    result = merge(deep, config(method="soft", budget={"macs": 0.75}, images=16), context)
    assert macs(result.model) <= 0.75 * macs(deep)
    rows = result.table("candidates").rows
    assert {row["steps"] for row in rows} == {1}
    best = min(rows, key=lambda row: row["held_back_root_kl"])  # type: ignore[arg-type,return-value]
    assert result.facts["schedule"] == best["candidate"]
    assert macs(plan(deep, config(method="soft", budget={"macs": 0.75})).model) <= 0.75 * macs(deep)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 3, "tokens": 6}, r"stages\.merge\.block: 3 is none .* 0 to 2"),
        ({"block": 1, "tokens": 17}, r"schedule: block 1 cannot keep 18 of its 17 tokens"),
        (
            {"block": 2, "budget": {"macs": 0.3}},
            r"macs: soft with schedule block 2 does not",
        ),
        ({"budget": {"macs": 0.01}}, r"budget\.macs: soft with schedule block 0 does not"),
        ({"schedule": [12, 9, 9]}, r"schedule: soft merges in one block, not in 2; give `block`"),
        ({"schedule": "constant", "budget": {"macs": 0.8}}, r"soft merges in one block, not in \d"),
    ],
)
def test_what_cannot_be_met_is_refused(
    options: dict[str, Any], message: str, deep: VitModel, context: Context
) -> None:
    with pytest.raises(InputError, match=message):
        merge(deep, config(method="soft", **options), context)


def test_features_of_patches_are_not_mixed(make_vit: MakeVit) -> None:
    dense = make_vit(depth=3, num_classes=0, global_pool="")
    with pytest.raises(InputError, match=r"method: .* gives features of each patch, which soft"):
        plan(dense, config(method="soft", block=1, tokens=6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 6}, "of which block"),
        ({"block": 1, "schedule": [12, 9, 9]}, "take schedule or block out"),
        ({"block": 1}, "budget: missing"),
        ({"block": 1, "tokens": 6, "budget": {"macs": 0.5}}, "take one of the two out"),
    ],
)
def test_configs_that_contradict_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(method="soft", **options)
