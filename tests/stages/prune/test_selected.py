"""Narrowing queries and keys that are normed, by selection."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.models import images_of, kl, rebuilt
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.measure import cost
from vitcompress.model.architecture import VitModel
from vitcompress.model.sizes import blocks, sizes_of
from vitcompress.stages.context import Context
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import plan, prune

MakeVit = Callable[..., VitModel]


def run(vit: VitModel, context: Context, **options: Any) -> VitModel:
    given = {"budget": {"macs": 0.9}, "structures": ["query_key"], "multiple": 4, **options}
    return prune(vit, PruneConfig.model_validate(given), context).model


NORMS: dict[str, dict[str, Any]] = {
    "LayerNorm": {"qk_norm": True},
    "RMSNorm": {"qk_norm": True, "norm_layer": "rmsnorm"},
}


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
def test_norms_become_narrower_with_the_heads(
    options: dict[str, Any], make_vit: MakeVit, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    vit = make_vit(**options)
    model = run(vit, context)
    widths = []
    for block in blocks(model.module):
        sizes = sizes_of(block).attention
        assert sizes is not None
        widths.append(sizes.query_key)
        assert block.attn.q_norm.weight.shape == block.attn.k_norm.weight.shape == (widths[-1],)
    assert min(widths) < 32
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))
    file = tmp_path / "model.onnx"
    export_onnx(model, file, {})
    check_parity(file, model, pixels, 1)
    planned = plan(vit, PruneConfig.model_validate({"budget": {"macs": 0.7}, "multiple": 4})).model
    assert {b.attn.q_norm.weight.shape for b in blocks(planned.module)} < {(i,) for i in range(32)}


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
def test_fitted_norms_are_better_than_those_there_were(
    options: dict[str, Any], make_vit: MakeVit, context: Context
) -> None:
    vit, pixels = make_vit(**options), images_of(context)
    found = {
        compensate: kl(
            vit.module,
            run(vit, context, compensate=compensate, budget={"macs": 0.88}).module,
            pixels,
        )
        for compensate in (True, False)
    }
    assert found[True] < 0.8 * found[False]


def test_dimensions_that_do_nothing_go_without_a_trace(
    make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    # An RMSNorm over fewer dimensions is the same where the others are zero, but for its scale.
    vit = make_vit(qk_norm=True, norm_layer="rmsnorm")
    dead = [0, 3, 4, 9, 17, 21, 30, 31]
    for block in blocks(vit.module):
        weight = block.attn.qkv.weight.view(3, 2, 32, 64)
        bias = block.attn.qkv.bias.view(3, 2, 32)
        weight[:2, :, dead] = bias[:2, :, dead] = 0
    model = run(vit, context, floor=0.75, budget={"macs": 0.96})
    assert [sizes_of(block).attention.query_key for block in blocks(model.module)] == [24, 24]  # type: ignore[union-attr]
    assert torch.allclose(model.module(pixels), vit.module(pixels), atol=2e-2)


def test_other_norms_do_not_hinder_values_and_hidden_units(
    make_vit: MakeVit, context: Context
) -> None:
    vit = make_vit(qk_norm=True)
    for block in blocks(vit.module):
        block.attn.q_norm = block.attn.k_norm = nn.Softsign()
    model = run(vit, context, structures=["value", "hidden"], budget={"macs": 0.8})
    assert cost.macs(model) <= 0.8 * cost.macs(vit)
    assert [sizes_of(block).attention.query_key for block in blocks(model.module)] == [32, 32]  # type: ignore[union-attr]
