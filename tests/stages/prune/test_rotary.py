"""Narrowing models with rotary embeddings and gated MLPs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.models import images_of, kl, rebuilt
from vitcompress.errors import InputError
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.measure import cost
from vitcompress.model.architecture import VitModel
from vitcompress.model.embedding import embedding_width
from vitcompress.model.sizes import blocks, sizes_of
from vitcompress.stages.context import Context
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import plan, prune
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import quantize

MakeVit = Callable[..., VitModel]

MODELS: dict[str, dict[str, Any]] = {
    "halves": {"name": "vit_small_patch16_dinov3", "global_pool": "token"},
    "mixed": {"name": "vit_small_patch16_rope_mixed_224"},
    "normed": {"name": "vit_small_patch16_dinov3", "qk_norm": True, "global_pool": "token"},
    "gated": {"name": "eva02_tiny_patch14_224"},
}


def config(**options: Any) -> PruneConfig:
    given = {"budget": {"macs": 0.9}, "structures": ["query_key"], "multiple": 4, **options}
    return PruneConfig.model_validate(given)


def run(vit: VitModel, context: Context, **options: Any) -> VitModel:
    return prune(vit, config(**options), context).model


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_a_narrower_model_is_made_again_and_exported(
    options: dict[str, Any], make_vit: MakeVit, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    vit = make_vit(**options)
    budget = {"macs": 0.8}
    model = run(vit, context, budget=budget, structures=["query_key", "heads", "value", "hidden"])
    assert cost.macs(model) <= 0.8 * cost.macs(vit)
    for block in blocks(model.module):
        sizes = sizes_of(block)
        assert sizes.attention is not None
        shape = (3, sizes.attention.heads, sizes.attention.query_key // 2)
        assert block.attn.rotation.frequencies.shape == shape
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))
    file = tmp_path / "model.onnx"
    export_onnx(model, file, {})
    assert check_parity(file, model, pixels, 1)["passed"]
    planned = plan(vit, config(budget=budget, structures=["query_key", "value", "hidden"])).model
    assert cost.macs(planned) <= 0.8 * cost.macs(vit)


def dead(vit: VitModel, chosen: list[tuple[int, int]]) -> None:
    """Make the query-key pairs `chosen` (head, pair) of all blocks zero."""
    for block in blocks(vit.module):
        weight, bias = block.attn.qkv.weight.view(3, 2, 16, 2, 64), block.attn.qkv.bias
        for head, pair in chosen:
            weight[:2, head, pair] = 0
            bias.view(3, 2, 16, 2)[:2, head, pair] = 0


@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_pairs_that_do_nothing_go_without_a_trace_from_each_head_its_own(
    kind: str, make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    name = "vit_small_patch16_rope_224" if kind == "axial" else "vit_small_patch16_rope_mixed_224"
    vit = make_vit(name)
    dead(vit, [(0, 0), (0, 3), (0, 7), (0, 15), (1, 1), (1, 3), (1, 9), (1, 10)])
    model = run(vit, context, floor=0.75, budget={"macs": 0.96})
    assert [sizes_of(block).attention.query_key for block in blocks(model.module)] == [24, 24]  # type: ignore[union-attr]
    # A refit to what is there already leaves rounding errors; a live pair would be missed by 1e-2.
    assert torch.allclose(model.module(pixels), vit.module(pixels), atol=2e-4)


def test_a_pair_is_worth_what_both_its_dimensions_are(
    make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    """Of a pair with one idle dimension the other must not go: turned, it is both."""
    vit = make_vit("vit_small_patch16_rope_224")
    for block in blocks(vit.module):
        block.attn.qkv.weight.view(3, 2, 16, 2, 64)[:2, :, :, 0] = 0
        block.attn.qkv.bias.view(3, 2, 16, 2)[:2, :, :, 0] = 0
    model = run(vit, context, budget={"macs": 0.94})
    for block, before in zip(blocks(model.module), blocks(vit.module), strict=True):
        assert (
            block.attn.qkv.weight[: block.attn.widths[0]].abs().sum(-1).view(-1, 2)[:, 1].min() > 0
        )
        found = block.attn.rotation.frequencies.flatten(1).T
        known = before.attn.rotation.frequencies.flatten(1).T
        assert all((known == pair).all(-1).any() for pair in found)


@pytest.mark.parametrize("saliency", ["hessian", "taylor", "random"])
def test_gated_units_go_whole(
    saliency: str, make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    vit = make_vit("eva02_tiny_patch14_224")
    idle = [0, 5, 9, 40]
    for block in blocks(vit.module):
        hidden = block.mlp.fc2.in_features
        block.mlp.fc1.weight[[i + hidden for i in idle]] = 0
        block.mlp.fc1.bias[[i + hidden for i in idle]] = 0
    options: dict[str, Any] = {"structures": ["hidden"], "saliency": saliency, "multiple": 2}
    weights = 2 * len(idle) * 3 * 64  # of all idle units, each of 17 tokens
    model = run(vit, context, budget={"macs": 1 - 17 * weights / cost.macs(vit)}, **options)
    assert cost.macs(model) < cost.macs(vit)
    change = (model.module(pixels) - vit.module(pixels)).abs().max()
    assert change > 1e-3 if saliency == "random" else change < 1e-4


def test_the_refit_of_norms_helps_where_queries_are_turned_after(
    make_vit: MakeVit, context: Context
) -> None:
    vit = make_vit(**MODELS["normed"])
    found = {
        compensate: kl(
            vit.module,
            run(vit, context, compensate=compensate, budget={"macs": 0.88}).module,
            images_of(context),
        )
        for compensate in (True, False)
    }
    assert found[True] < found[False]


def test_normed_hidden_units_stay_but_heads_can_be_narrowed(
    make_vit: MakeVit, context: Context
) -> None:
    vit = make_vit("eva02_base_patch14_224")
    model = run(vit, context, structures=["query_key", "value"], budget={"macs": 0.95})
    assert cost.macs(model) <= 0.95 * cost.macs(vit)
    with pytest.raises(InputError, match="hidden cannot be narrowed"):
        run(vit, context, structures=["hidden"])


def test_the_stream_can_be_narrowed(make_vit: MakeVit, context: Context, pixels: Tensor) -> None:
    vit = make_vit("vit_small_patch16_rope_224")
    model = run(vit, context, structures=["embedding", "hidden"], budget={"macs": 0.8})
    assert embedding_width(model.module) < 64
    assert cost.macs(model) <= 0.8 * cost.macs(vit)
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))


@pytest.mark.parametrize("name", ["eva02_enormous_patch14_clip_224", "vit_base_patch16_sapiens2"])
def test_other_blocks_are_refused(name: str, make_vit: MakeVit, context: Context) -> None:
    vit = make_vit(name, **({"num_kv_heads": 1} if "sapiens2" in name else {}))
    with pytest.raises(InputError, match=r"stages\.prune: .*take the stage out"):
        run(vit, context)
    quantized = quantize(vit, QuantizeConfig(), context).model
    assert any(name.endswith("proj") for name in quantized.architecture.quantized)
