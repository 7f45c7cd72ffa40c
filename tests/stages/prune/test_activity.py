"""How often hidden units do something: counted as a plain loop counts it, and told in reports."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from helpers.pruning import configured
from vitcompress.methods.saliency import active
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.prune.activity import Activity, activities
from vitcompress.stages.prune.stage import prune

MakeVit = Callable[..., VitModel]


def test_activity_adds_up_over_batches(vit: VitModel, pixels: Tensor) -> None:
    seen: dict[str, list[Tensor]] = {}
    sites = [site for site in vit.anatomy.sites if site.kind == "mlp"]
    for site in sites:
        keep = seen.setdefault(site.name, [])
        handle = site.last.register_forward_pre_hook(lambda _, x, keep=keep: keep.append(x[0]))
        vit.module(pixels)
        handle.remove()
    found = activities(vit.anatomy, pixels.split(2))
    assert set(found) == set(seen)
    for name, (hidden,) in seen.items():
        each, some = found[name], active(hidden)
        assert torch.allclose(each.frequency, some.double().mean((0, 1)))
        idle = sum(int((~some[image].any(0)).sum()) for image in range(len(pixels)))
        assert (int(each.idle), int(each.images)) == (idle, len(pixels))


def test_units_that_never_act_are_told_and_go_first(vit: VitModel, context: Context) -> None:
    """GELU of a large negative number is zero."""
    idle = 24
    for block in vit.module.blocks:
        block.mlp.fc1.bias[:idle] = -1e3
    result = prune(vit, configured(saliency="frequency", budget={"macs": 0.85}), context)
    rows = result.table("hidden_activity").rows
    assert [row["site"] for row in rows] == [s.name for s in vit.anatomy.sites if s.kind == "mlp"]
    for row in rows:
        assert row["units_never_active"] == idle
        assert cast(float, row["idle_units_per_image"]) >= idle
        assert cast(float, row["near_zero_share"]) >= idle / cast(int, row["units"])
    kept: list[Any] = [block.mlp.fc1.bias for block in result.model.module.blocks]
    assert any(len(bias) <= len(vit.module.blocks[0].mlp.fc1.bias) - idle for bias in kept)
    for bias in kept:
        gone = len(vit.module.blocks[0].mlp.fc1.bias) - len(bias)
        assert int((bias < -100).sum()) == max(0, idle - gone)


def test_activity_of_few_values() -> None:
    hidden = torch.tensor([[[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [[0.0, 0.0, 2.0], [0.0, 0.0, 2.0]]])
    found = Activity.of(hidden)
    assert found.active.tolist() == [2.0, 0.0, 3.0]
    assert int(found.idle) == 1 + 2
    assert found.plus(found).frequency.tolist() == [0.5, 0.0, 0.75]
