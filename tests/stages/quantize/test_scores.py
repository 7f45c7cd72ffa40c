"""What layers count under a score: it reaches through the model, and nothing else changes it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.models import BLOCKS
from vitcompress.methods import relevance
from vitcompress.model.architecture import VitModel, set_merging
from vitcompress.model.merging import Merging
from vitcompress.stages.context import Context
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import prune
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.scores import Scored, score_of
from vitcompress.stages.quantize.stage import sensitivity

MakeVit = Callable[..., VitModel]


def importance(vit: VitModel, score: str, context: Context) -> dict[str, float]:
    """What layers count under a score that measures nothing."""
    scored = Scored(vit.anatomy, BLOCKS, vit.task, context, lambda _: 0.0)
    return dict(zip(BLOCKS, score_of(score).measure(scored), strict=True))


@pytest.mark.parametrize("score", ["lrp", "fisher"])
def test_a_layer_that_the_output_ignores_counts_nothing(
    score: Any, vit: VitModel, context: Context
) -> None:
    block = vit.module.blocks[1]
    block.mlp.fc2.weight.zero_()
    found = importance(vit, score, context)
    assert found["blocks.1.mlp.fc1"] == pytest.approx(0, abs=1e-12)
    others = [v for n, v in found.items() if n not in ("blocks.1.mlp.fc1", "blocks.1.mlp.fc2")]
    assert min(others) > 0


@pytest.mark.parametrize("score", ["lrp", "fisher"])
def test_importance_counts_by_its_square_root(score: Any, vit: VitModel, context: Context) -> None:
    rows = sensitivity(vit, QuantizeConfig(bits=4, score=score, reparametrise=False), context).rows
    found = importance(vit, score, context).values()
    roots = [value**0.5 for value in found]
    assert [row["importance"] for row in rows] == pytest.approx([r / sum(roots) for r in roots])
    column = {"lrp": "relevance"}.get(score, score)
    assert [row[column] for row in rows] == pytest.approx([value / sum(found) for value in found])


@pytest.mark.parametrize("method", ["tome", "diffrate", "evit", "mctf", "ppt", "fisher"])
def test_scores_reach_through_merged_tokens(
    method: Any, make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    config = PruneConfig(budget={"macs": 0.8}, compensate=False, allocate="uniform")
    vit = prune(make_vit(depth=4), config, context).model
    set_merging(vit.module, Merging(method=method, kept=(14, 12, 10, 8), rank=7))
    if method == "fisher":
        generator = torch.Generator().manual_seed(2)
        vit.module.blocks.fill(
            {
                n: torch.randn(b.shape, generator=generator)
                for n, b in vit.module.blocks._buffers.items()
            }
        )
    for score in ("lrp", "fisher"):
        assert min(importance(vit, score, context).values()) > 0
    # Relevance is conserved: what the sum of two tokens has, they have together.
    vit.module.double()
    for parameter in vit.module.parameters():
        parameter.requires_grad_(parameter.ndim == 1 or parameter.shape[0] == 1)
    given = pixels.double().requires_grad_()
    with torch.enable_grad(), relevance.Propagation():
        top = vit.module(given).amax(-1).sum()
        top.backward()
    held = (p for p in vit.module.parameters() if p.grad is not None)
    gains = {id(m.weight) for m in vit.module.modules() if isinstance(m, torch.nn.LayerNorm)}
    total = sum(relevance.of(p).sum() for p in (given, *held) if id(p) not in gains)
    assert total.item() == pytest.approx(top.item(), rel=1e-9)


@pytest.mark.parametrize("score", ["lrp", "fisher"])
def test_scores_do_not_depend_on_whether_gradients_are_on(
    score: Any, vit: VitModel, context: Context
) -> None:
    with torch.no_grad():
        off = importance(vit, score, context)
    assert off == importance(vit, score, context)


def test_heads_that_change_places_count_the_same(vit: VitModel, context: Context) -> None:
    before = importance(vit, "lrp", context)
    attention = vit.module.blocks[0].attn
    order = torch.cat([torch.arange(32, 64), torch.arange(32)])  # two heads of 32
    rows = torch.cat([part * 64 + order for part in range(3)])
    attention.qkv.weight.copy_(attention.qkv.weight[rows])
    attention.qkv.bias.copy_(attention.qkv.bias[rows])
    attention.proj.weight.copy_(attention.proj.weight[:, order])
    after = importance(vit, "lrp", context)
    assert after == pytest.approx(before, rel=1e-4)
