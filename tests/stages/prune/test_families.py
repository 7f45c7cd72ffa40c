"""Narrowing windowed models, models with biases of positions, and models without a head."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from helpers.models import images_of, rebuilt
from vitcompress.errors import InputError
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.measure import cost
from vitcompress.measure.latencies import LatencyTable
from vitcompress.model.architecture import Architecture, VitModel
from vitcompress.model.families import adopt
from vitcompress.model.sizes import sizes_of
from vitcompress.stages.context import Context
from vitcompress.stages.importance import Importance
from vitcompress.stages.prune import costs
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import plan, prune, sensitivity
from vitcompress.stages.prune.statistics import site_moments
from vitcompress.stages.stage import StageResult

MakeVit = Callable[..., VitModel]
MakeContext = Callable[..., Context]

SWIN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depths": [1, 2],
    "num_heads": [2, 4],
    "window_size": 2,
    "num_classes": 10,
}
PADDED = {**SWIN, "img_size": 36, "window_size": 2}
INNER = ["query_key", "value", "hidden", "heads"]


@pytest.fixture(scope="module")
def make_swin(make_vit: MakeVit) -> Callable[..., VitModel]:
    """A function that returns a tiny windowed model; `make_vit` lends its preprocessing."""

    def make(name: str = "swin_tiny_patch4_window7_224", **options: Any) -> VitModel:
        given = {**SWIN, **options}
        torch.manual_seed(0)
        module: torch.nn.Module = timm.create_model(name, **given)
        for parameter in module.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.data.normal_(std=spread)
        size = (given["img_size"],) * 2
        return VitModel(
            module=adopt(module, (3, *size)),
            architecture=Architecture(timm=name, options=given),
            preprocess=make_vit().preprocess.model_copy(update={"input_size": size}),
        )

    return make


def config(**options: Any) -> PruneConfig:
    return PruneConfig.model_validate({"budget": {"macs": 0.75}, "structures": INNER, **options})


def fitting(vit: VitModel, context: Context) -> Context:
    """The context with images of the size that `vit` takes."""
    return replace(context, preprocess=vit.preprocess)


def run(vit: VitModel, context: Context, **options: Any) -> StageResult:
    return prune(vit, config(**options), fitting(vit, context))


def check_result(model: VitModel, vit: VitModel, pixels: Tensor, file: Path) -> None:
    """It is narrower, is described, and its file agrees."""
    assert cost.macs(model) <= 0.75 * cost.macs(vit)
    described = [sizes_of(block) for block in model.anatomy.blocks]
    assert described == list(model.architecture.blocks or ())
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))
    export_onnx(model, file, {})
    assert check_parity(file, model, pixels, 1)["passed"]


@pytest.mark.parametrize("options", [SWIN, PADDED], ids=["shifted", "filled up"])
def test_a_windowed_model_becomes_narrower(
    options: dict[str, Any], make_swin: MakeVit, context: Context, tmp_path: Path
) -> None:
    vit = make_swin(**options)
    pixels = images_of(fitting(vit, context))[:3]
    result = run(vit, context, allocate="measured" if options is SWIN else "uniform")
    check_result(result.model, vit, pixels, tmp_path / "model.onnx")
    names = [str(row["structure"]) for row in result.table("structures").rows]
    assert names[0] == "layers.0.blocks.0.query_key"
    assert cost.macs(plan(vit, config()).model) <= 0.75 * cost.macs(vit)


@pytest.mark.parametrize("options", [SWIN, PADDED], ids=["shifted", "filled up"])
def test_costs_are_those_of_the_narrower_model(options: dict[str, Any], make_swin: MakeVit) -> None:
    vit = make_swin(**options)
    for unit, count in (("macs", cost.macs), ("params", lambda m: cost.parameters(m.module))):
        meter = costs.site_costs(vit, unit, LatencyTable())  # type: ignore[arg-type]
        small = plan(vit, config(budget={unit: 0.7}, structures=INNER)).model
        sizes = {site.name: costs.size_of(site) for site in small.anatomy.sites}
        told = meter.fixed + sum(meter.site(name, size) for name, size in sizes.items())
        assert told == count(small)  # type: ignore[operator]


def test_heads_keep_their_own_biases(make_swin: MakeVit, context: Context) -> None:
    vit = make_swin()
    for block in vit.anatomy.blocks:  # one head does nothing
        block.attn.proj.weight[:, : block.attn.widths[2] // block.attn.num_heads] = 0
    model = run(vit, context, structures=["heads"], budget={"macs": 0.9}).model
    pixels = images_of(fitting(vit, context))[:3]
    tables = [
        [block.attn.relative_position_bias_table for block in each.anatomy.blocks]
        for each in (vit, model)
    ]
    for before, after in zip(*tables, strict=True):
        if after.shape != before.shape:
            assert torch.equal(after, before[:, before.shape[1] - after.shape[1] :])
    assert torch.allclose(model.module(pixels), vit.module(pixels), atol=1e-4)


@pytest.mark.parametrize("options", [SWIN, PADDED], ids=["shifted", "filled up"])
def test_keys_count_as_they_are_attended_to_in_their_windows(
    options: dict[str, Any], make_swin: MakeVit, context: Context
) -> None:
    vit = make_swin(**options)
    anatomy, pixels = vit.anatomy, images_of(fitting(vit, context))[:2]
    alike = {site.name: Importance(torch.eye(1), 0.0, 0) for site in anatomy.sites}
    found = site_moments(anatomy, [pixels], alike).query_key
    site = anatomy.sites[4]  # the last attention, shifted
    attention, seen = site.operator, []
    handle = attention.qkv.register_forward_hook(lambda _, __, y: seen.append(y))
    vit.module(pixels)
    handle.remove()
    windows, heads = attention.windows, attention.num_heads
    q, k, _ = seen[0].split(attention.widths, -1)
    bias = attention.position_bias()[0].unflatten(0, (windows.count, heads))
    queries, keys = torch.zeros(2, heads, 16, 16, dtype=torch.float64)
    for image, window in ((i, w) for i in range(2) for w in range(windows.count)):
        real = windows.order.view(windows.size, windows.count)[:, window] < len(windows.inverse)
        for head in range(heads):
            mine = [
                t.view(2, windows.size, windows.count, heads, -1)[image, :, window, head]
                for t in (q, k)
            ]
            shares = (mine[0] @ mine[1].T * attention.scale + bias[window, head]).softmax(-1)
            received = shares[real].mean(0)
            centred = mine[1] - received @ mine[1]
            queries[head] += (mine[0][real].T @ mine[0][real]).double()
            keys[head] += (centred.T @ (centred * received[:, None])).double()
    assert torch.allclose(found[site.name].query, queries, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found[site.name].key, keys, rtol=1e-4, atol=1e-4)


def test_windowed_models_whose_norms_come_after_and_their_streams_are_refused(
    make_swin: MakeVit,
) -> None:
    second = make_swin("swinv2_tiny_window8_256")
    with pytest.raises(InputError, match=r"stages\.prune: .*norms come after"):
        plan(second, config())
    with pytest.raises(InputError, match=r"embedding cannot be narrowed in .* no single width"):
        plan(make_swin(), config(structures=["embedding"]))


def test_a_bias_of_relative_positions_stays_with_its_heads(
    make_vit: MakeVit, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    vit = make_vit("beitv2_base_patch16_224")
    check_result(run(vit, context).model, vit, pixels, tmp_path / "model.onnx")


def test_a_model_without_a_head_is_judged_by_its_directions(
    make_vit: MakeVit, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    vit = make_vit(num_classes=0)
    result = run(vit, context, allocate="uniform")
    check_result(result.model, vit, pixels, tmp_path / "model.onnx")
    facts = result.facts
    assert facts["held_back_distance_narrowed"] < facts["held_back_distance_not_compensated"]  # type: ignore[operator]
    assert "distance_if_halved" in result.table("structures").rows[0]
    rows = sensitivity(vit, config(structures=["hidden"]), context).rows
    assert all(row["distance_less_50%"] > 0 for row in rows)  # type: ignore[operator]
