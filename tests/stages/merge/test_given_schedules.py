"""Schedules that are not searched for: by the mass of attention, and the best of random ones."""

from collections.abc import Callable

import pytest
import torch

from helpers.merging import config, kept
from vitcompress.errors import InputError
from vitcompress.measure.cost import macs
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.merge import search
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.mass import attention_masses, carrying
from vitcompress.stages.merge.stage import _placed, _scheduling, merge, plan


def test_how_many_carry_a_share() -> None:
    mass = torch.tensor([[0.5, 0.3, 0.2], [0.98, 0.01, 0.01]]).cumsum(1)
    assert [carrying(mass, share) for share in (0.4, 0.6, 0.99, 1.1)] == [1.0, 1.5, 2.5, 3.0]


def test_masses_are_those_of_the_attention(deep: VitModel, context: Context) -> None:
    scheduling = _placed(_scheduling(deep, config(budget={"macs": 0.8})), context)
    found = attention_masses(scheduling, context, 8)
    pixels = next(iter(context.shared_batches("", 8)))
    block = scheduling.model.anatomy.blocks[0]
    x = block.norm1(scheduling.model.anatomy.start(pixels).x)
    q, k, _ = block.attn.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    paid = (q @ k.mT * block.attn.scale).softmax(-1).mean((1, 2))[:, 1:]
    paid = (paid / paid.sum(1, keepdim=True)).sort(1, descending=True).values.cumsum(1)
    assert len(found) == 3
    assert torch.allclose(found[0][: len(paid)], paid, atol=1e-5)


@pytest.mark.parametrize("schedule", ["mass", "random"])
def test_budgets_are_met(
    schedule: str, deep: VitModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_DRAWS", 6)

    def wanted(share: float) -> MergeConfig:
        return config(method="diffrate", schedule=schedule, budget={"macs": share}, images=8)

    result = merge(deep, wanted(0.75), context)
    assert 0.65 * macs(deep) < macs(result.model) <= 0.75 * macs(deep)
    assert result.facts["schedule"] == schedule
    again = merge(deep, wanted(0.75), context)
    assert kept(again.model) == kept(result.model)
    assert macs(plan(deep, wanted(0.75)).model) <= 0.75 * macs(deep)
    with pytest.raises(InputError, match=r"stages\.merge\.(budget|schedule)"):
        merge(deep, wanted(0.01), context)


def test_the_best_of_more_random_schedules_is_no_worse(
    deep: VitModel, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_STEP", 0.0)
    wanted = config(method="diffrate", schedule="random", budget={"macs": 0.75}, images=8)
    distances = []
    for draws in (1, 8):
        monkeypatch.setattr(search, "_DRAWS", draws)
        context = make_context(resume=False)
        found = merge(deep, wanted, context).model
        pixels = torch.cat(list(context.shared_batches("", 8)))
        distance = deep.task.distance(found.module(pixels), deep.module(pixels))
        distances.append(float(distance.sqrt().mean()))
    assert distances[1] <= distances[0]
