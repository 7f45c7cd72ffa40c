"""Narrowing the stream of tokens of a tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from helpers.models import images_of, kl, rebuilt
from vitcompress.errors import InputError
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.measure import cost, latencies
from vitcompress.model.architecture import (
    VitModel,
    set_tail,
)
from vitcompress.model.embedding import embedding_width, stream_readers
from vitcompress.model.sizes import blocks
from vitcompress.stages.context import Context
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.stage import merge
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.embedding import Embedding, narrowed
from vitcompress.stages.prune.stage import plan, prune, sensitivity
from vitcompress.stages.prune.study import study
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import quantize
from vitcompress.stages.stage import StageResult

MakeVit = Callable[..., VitModel]


def configured(**options: Any) -> PruneConfig:
    given = {"budget": {"macs": 0.7}, "multiple": 4, "structures": ["embedding"], **options}
    return PruneConfig.model_validate(given)


def run(vit: VitModel, context: Context, **options: Any) -> StageResult:
    return prune(vit, configured(**options), context)


def turned(vit: VitModel, context: Context) -> tuple[torch.nn.Module, Embedding]:
    found = study(vit, configured(), context)
    assert found.embedding is not None
    return found.module, found.embedding


FAMILY: dict[str, dict[str, Any]] = {
    "class token": {},
    "layer scale and registers": {"init_values": 0.1, "reg_tokens": 2},
    "mean of patches, normed after": {"global_pool": "avg", "class_token": False},
    "mean of patches, normed before": {"global_pool": "avg", "fc_norm": False},
    "no class position": {"no_embed_class": True, "qk_norm": True},
}


@pytest.mark.parametrize("options", FAMILY.values(), ids=FAMILY)
@pytest.mark.parametrize("compensate", [True, False])
def test_the_whole_width_in_another_basis_is_the_same_model(
    options: dict[str, Any], compensate: bool, make_vit: MakeVit, context: Context, pixels: Tensor
) -> None:
    vit = make_vit(**options)
    module, found = turned(vit, context)
    # One channel more than the principal directions that are not nothing: all there is, renamed.
    wide = narrowed(module, found, 64, compensate)
    assert wide is not module
    assert torch.allclose(wide(pixels), vit.module(pixels), atol=1e-3)
    assert not torch.equal(wide.blocks[0].attn.qkv.weight, module.blocks[0].attn.qkv.weight)
    for _, norm, _ in stream_readers(wide):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


def test_a_stream_of_few_directions_can_be_narrowed_without_a_trace(
    vit: VitModel, context: Context, pixels: Tensor
) -> None:
    # All that is written lies in 31 directions and that of equal channels.
    draw = torch.randn(64, 31, generator=torch.Generator().manual_seed(3))
    basis, _ = torch.linalg.qr(torch.cat([draw - draw.mean(0), torch.ones(64, 1)], 1))
    flat = basis @ basis.T
    module = vit.module
    module.patch_embed.proj.weight.copy_(flat @ module.patch_embed.proj.weight)
    module.patch_embed.proj.bias.copy_(flat @ module.patch_embed.proj.bias)
    for name in ("cls_token", "pos_embed"):
        getattr(module, name).copy_(getattr(module, name) @ flat)
    for block in blocks(module):
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.copy_(flat @ layer.weight)
            layer.bias.copy_(flat @ layer.bias)
    for compensate in (True, False):
        options = {"budget": {"macs": 0.56}, "multiple": 8}
        model = run(vit, context, compensate=compensate, **options).model
        assert embedding_width(model.module) == 32
        assert torch.allclose(model.module(pixels), module(pixels), atol=2e-3)


EVERYTHING = ("embedding", "query_key", "value", "hidden")


@pytest.fixture
def pruned(vit: VitModel, context: Context) -> StageResult:
    """Narrowed in all directions, after a tail that computes the class token only."""
    set_tail(vit.module, 1)
    tail = vit.architecture.model_copy(update={"tail_tokens": 1})
    vit = VitModel(vit.module, tail, vit.preprocess)
    # What every branch costs falls with the width: with little else to take, the stream must give.
    return run(vit, context, structures=EVERYTHING, budget={"macs": 0.3}, floor=0.5)


def test_the_budget_is_met_and_described(
    pruned: StageResult, make_vit: MakeVit, pixels: Tensor
) -> None:
    model = pruned.model
    width = embedding_width(model.module)
    assert 32 <= width < 64
    assert cost.macs(model) <= 0.3 * cost.macs(make_vit())
    assert model.architecture.embedding == width
    row = pruned.table("structures").rows[-1]
    assert (row["structure"], row["before"], row["after"]) == ("embedding", 64, width)
    assert not any(64 in p.shape[-1:] for n, p in model.module.named_parameters() if "pos" in n)
    assert model.module.num_features == width
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))
    assert [block.attn.scale for block in blocks(model.module)] == [32**-0.5] * 2


def test_it_reloads_quantizes_merges_and_exports(
    pruned: StageResult, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    model, width = pruned.model, embedding_width(pruned.model.module)
    save_folder(model, tmp_path)
    assert torch.equal(load_folder(tmp_path).module(pixels), model.module(pixels))

    file = tmp_path / "model.onnx"
    export_onnx(model, file, {})
    check_parity(file, model, pixels, 1)
    graph = onnx.load(file).graph
    shapes = [tuple(i.dims) for i in graph.initializer]
    assert any(shape == (3 * 8 * 8, width) for shape in shapes)
    assert not any(64 in shape for shape in shapes)

    merging = MergeConfig.model_validate({"method": "fisher", "schedule": [12, 12]})
    merged = merge(model, merging, context).model
    small = quantize(merged, QuantizeConfig(rounding="nearest"), context).model
    assert torch.equal(rebuilt(small)(pixels), small.module(pixels))
    export_onnx(small, file, {})
    check_parity(file, small, pixels, 1)


def test_two_heads_read_the_narrower_stream(make_vit: MakeVit, context: Context) -> None:
    vit = make_vit("deit_tiny_distilled_patch16_224")
    model = run(vit, context, budget={"macs": 0.9}).model
    assert model.module.head_dist.in_features == embedding_width(model.module) < 64
    whole = run(vit, context, budget={"macs": 1.0}).model
    assert torch.equal(whole.module(images_of(context)), vit.module(images_of(context)))


def test_refits_are_worth_it(vit: VitModel, context: Context) -> None:
    found = {
        compensate: run(vit, context, compensate=compensate).model.module
        for compensate in (True, False)
    }
    pixels = images_of(context)
    assert kl(vit.module, found[True], pixels) < 0.7 * kl(vit.module, found[False], pixels)


@pytest.mark.parametrize("unit", ["params", "bytes", "latency"])
def test_other_budgets_know_the_width(
    unit: str, vit: VitModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_size(parts: dict[str, Any], _: str) -> dict[str, float]:
        return {name: p.size[1] * float(sum(map(int, name.split()))) for name, p in parts.items()}

    monkeypatch.setattr(latencies, "_milliseconds", by_size)
    monkeypatch.setattr(latencies.LatencyTable, "rest", lambda *_: 0.0)
    model = run(vit, context, budget={unit: 0.7}).model
    width = embedding_width(model.module)
    if unit == "latency":
        assert width == 44  # the widest multiple of 4 below 0.7 of 64
    else:
        assert 0.64 < cost.parameters(model.module) / cost.parameters(vit.module) <= 0.7


def test_a_plan_and_sensitivities_cover_the_stream(vit: VitModel, context: Context) -> None:
    config = configured(structures=EVERYTHING, budget={"macs": 0.4})
    planned = plan(vit, config).model
    assert cost.macs(planned) <= 0.4 * cost.macs(vit)
    width = planned.architecture.embedding
    assert width is not None
    assert 24 <= width < 64
    row = sensitivity(vit, configured(structures=EVERYTHING), context).rows[-1]
    costs = [v for k, v in row.items() if k.startswith("kl_less") and v is not None]
    assert row["structure"] == "embedding"
    assert costs == sorted(costs)
    assert costs[0] > 0
    uniform = run(
        vit, context, structures=EVERYTHING, budget={"macs": 0.4}, allocate="uniform"
    ).model
    assert uniform.architecture.embedding == width


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "attention pooling": ({"global_pool": "map", "class_token": False}, "pooling"),
    "maximum": ({"global_pool": "max"}, "pooling"),
    "norm before": ({"pre_norm": True}, "a norm follows its patch embedding"),
    "no norm after": ({"final_norm": False}, "not one norm before its head"),
    "other norms": ({"norm_layer": "rmsnorm"}, "no LayerNorm"),
    "no bias": ({"qkv_bias": False}, "is no linear layer with a bias"),
}


@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED)
def test_streams_that_cannot_be_narrowed_are_refused_in_a_line(
    options: dict[str, Any], reason: str, make_vit: MakeVit
) -> None:
    with pytest.raises(InputError, match="structures: embedding cannot be narrowed") as error:
        plan(make_vit(**options), configured())
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
