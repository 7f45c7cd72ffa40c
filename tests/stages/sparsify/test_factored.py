"""Two small products in the place of a layer: as data, in a fresh process, as a graph, under a
budget, and with other stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from helpers.models import images_of, kl, rebuilt
from vitcompress.errors import InputError
from vitcompress.export.folder import save_folder
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.measure import cost
from vitcompress.methods import factors
from vitcompress.model.architecture import Architecture, VitModel, build
from vitcompress.model.modules.factored import MonarchLinear, whole
from vitcompress.stages.context import Context
from vitcompress.stages.registry import StageConfig, stage_of
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.layer import distortion
from vitcompress.stages.sparsify.stage import plan, prepare_sparsify, sensitivity, sparsify

MLPS = [f"blocks.{i}.mlp.{kind}" for i in range(2) for kind in ("fc1", "fc2")]
FORMS = ["low_rank", "monarch:2"]

Options = dict[str, Any]


def run(vit: VitModel, context: Context, pattern: str = "low_rank", **options: Any) -> VitModel:
    budget = options if {"rank", "density"} & set(options) else {"density": 0.5, **options}
    return sparsify(vit, SparsifyConfig(pattern=pattern, **budget), context).model


def shape(vit: VitModel, name: str) -> tuple[int, int]:
    linear = vit.anatomy.linears()[name]
    return linear.out_features, linear.in_features


@pytest.mark.parametrize("pattern", FORMS)
def test_layers_are_described_rebuilt_and_loaded_again(
    pattern: str,
    vit: VitModel,
    context: Context,
    pixels: Tensor,
    fresh_logits: Callable[[Path, Tensor], Tensor],
    tmp_path: Path,
) -> None:
    model = run(vit, context, pattern, allocation="uniform", layers=("blocks",))
    assert set(model.architecture.factored) == {n for n in vit.anatomy.linears() if "block" in n}
    for name, layer in model.architecture.factored.items():
        kept = factors.density(shape(vit, name), layer.blocks, layer.rank)
        more = factors.density(shape(vit, name), layer.blocks, layer.rank + 1)
        assert kept <= 0.5 < more
    expected = model.module(pixels)
    assert torch.equal(rebuilt(model)(pixels), expected)
    save_folder(model, tmp_path)
    assert torch.equal(fresh_logits(tmp_path, pixels), expected)
    assert cost.parameters(model.module) < cost.parameters(vit.module)
    assert cost.macs(model) < cost.macs(vit)


@pytest.mark.parametrize("pattern", FORMS)
def test_the_graph_holds_the_two_factors_and_computes_the_same(
    pattern: str, vit: VitModel, context: Context, tmp_path: Path
) -> None:
    model = run(vit, context, pattern, rank=3)
    path = tmp_path / "m.onnx"
    export_onnx(model, path, {})
    assert check_parity(path, model, images_of(context)[:4], 1)["passed"]
    held = [tuple(t.dims) for t in onnx.load(path).graph.initializer]
    for name in MLPS:
        outputs, inputs = shape(vit, name)
        assert (inputs, outputs) not in held
        blocks = model.architecture.factored[name].blocks
        parts = (inputs // blocks, 3 * blocks), (3 * blocks, outputs // blocks)
        assert all(part in held or (blocks, *part) in held for part in parts)


@pytest.mark.parametrize("sizes", [(5, 8), (2, 5, 8), (2, 3, 5, 8)])
def test_the_two_products_are_one_linear(sizes: tuple[int, ...]) -> None:
    layer = MonarchLinear(8, 12, 2, 3, bias=True)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(sizes)
    torch.testing.assert_close(layer(x), whole(layer)(x))


@pytest.mark.parametrize("pattern", FORMS)
def test_moments_of_inputs_make_better_products(
    pattern: str, vit: VitModel, context: Context
) -> None:
    known = prepare_sparsify(vit, SparsifyConfig(pattern=pattern, rank=2), context)
    errors = []
    for reconstruct in (True, False):
        model = run(vit, context, pattern, rank=2, reconstruct=reconstruct)
        found = [
            distortion(known.floats[n], model.module.get_submodule(n), known.moments[n])[0]
            for n in MLPS
        ]
        errors.append(sum(found))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("pattern", FORMS)
def test_a_budget_is_met_where_it_costs_least(
    pattern: str, vit: VitModel, context: Context
) -> None:
    whole = sum(vit.anatomy.linears()[name].weight.numel() for name in MLPS)
    model = run(vit, context, pattern, density=0.6)
    left = cost.parameters(vit.module) - cost.parameters(model.module)
    assert left >= 0.4 * whole
    even = run(vit, context, pattern, density=0.6, allocation="uniform")
    losses = [kl(vit.module, each.module, images_of(context)) for each in (model, even)]
    assert losses[0] <= 1.05 * losses[1]
    config = SparsifyConfig(pattern=pattern, density=0.6)
    planned = plan(vit, config).model
    assert cost.macs(planned) == pytest.approx(cost.macs(model), rel=0.1)
    assert len(sensitivity(vit, config, context).rows) == len(MLPS)


def test_density_one_changes_nothing(vit: VitModel, context: Context, pixels: Tensor) -> None:
    for pattern in FORMS:
        model = run(vit, context, pattern, density=1.0, allocation="uniform")
        assert torch.equal(model.module(pixels), vit.module(pixels))
        assert model.architecture == vit.architecture


def test_layers_can_have_products_of_different_forms(vit: VitModel, context: Context) -> None:
    forms = {"*.fc2": "monarch:2", "blocks.1.mlp.fc1": "2:4"}
    model = run(vit, context, "low_rank", rank=3, patterns=forms)
    found = model.architecture
    blocks = {n: layer.blocks for n, layer in found.factored.items()}
    assert blocks == {MLPS[0]: 1, MLPS[1]: 2, MLPS[3]: 2}
    assert found.sparse == {MLPS[2]: "2:4"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pattern": "low_rank"}, "needs the share of weights that stays"),
        ({"pattern": "low_rank", "rank": 2, "density": 0.5}, "leave out one of them"),
        ({"pattern": "2:4", "rank": 2}, "2:4 has none; leave the key out"),
        ({"pattern": "low_rank", "rank": 999}, "saves nothing in blocks.0.mlp.fc1"),
        ({"pattern": "monarch:5", "rank": 1}, "no multiples of 5; take it out"),
        ({"pattern": "monarch:2", "rank": 1, "storage": "dense"}, "no zeros to write"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    options: Options, reason: str, vit: VitModel
) -> None:
    with pytest.raises(InputError, match=reason) as error:
        plan(vit, SparsifyConfig(**options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pattern", ["monarch", "monarch:1", "monarch:0", "low_rank:3"])
def test_other_words_are_no_patterns(pattern: str) -> None:
    with pytest.raises(ValidationError, match="is no pattern"):
        SparsifyConfig(pattern=pattern, density=0.5)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({"factored": {"blocks.0.mlp.fc3": {"blocks": 1, "rank": 2}}}, "is no linear layer"),
        ({"factored": {"blocks.0.mlp.fc1": {"blocks": 5, "rank": 2}}}, "do not divide"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    update: Options, reason: str, vit: VitModel
) -> None:
    described = {**vit.architecture.model_dump(), **update}
    with pytest.raises(InputError, match=reason):
        build(Architecture.model_validate(described))
    with pytest.raises(ValidationError):
        Architecture(timm="vit", sparse={"blocks.0.mlp.fc1": "low_rank"})


AFTER: dict[str, Options] = {
    "tail": {},
    "sparsify": {"layers": ["blocks.*"]},
    "quantize": {"rounding": "nearest", "residual": 0, "layers": ["blocks.*"]},
    "recover": {"method": "affine"},
}
REFUSED: dict[str, tuple[Options, str]] = {
    "prune": ({"budget": {"params": 0.8}}, "put it before sparsify"),
    "merge": ({"method": "tome", "budget": {"macs": 0.8}}, "put it before sparsify"),
    "sparsify": ({"pattern": "low_rank", "rank": 1}, "one of two products already"),
}


def configured(stage: str, options: Options) -> Any:
    given = {"type": stage, "name": "second", **options}
    return TypeAdapter[Any](StageConfig).validate_python(given)


@pytest.mark.parametrize("pattern", FORMS)
@pytest.mark.parametrize("stage", AFTER)
def test_other_stages_come_after_it(
    stage: str,
    pattern: str,
    vit: VitModel,
    context: Context,
    pixels: Tensor,
) -> None:
    layers = ("blocks.*.fc1",)
    made = run(vit, context, pattern, rank=4, layers=layers)
    config = configured(stage, AFTER[stage])
    known = stage_of(config)
    planned = known.plan(
        plan(vit, SparsifyConfig(pattern=pattern, rank=4, layers=layers)).model, config
    )
    model = known.run(made, config, context).model
    exact = {"factored", "quantized", "sparse", "tail_tokens"}
    assert model.architecture.model_dump(include=exact) == planned.model.architecture.model_dump(
        include=exact
    )
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))
    if stage == "quantize":
        first = "blocks.0.mlp.fc1.first" in model.architecture.quantized
        assert first == (pattern == "low_rank")
        assert "blocks.0.mlp.fc2" in model.architecture.quantized


@pytest.mark.parametrize("stage", REFUSED)
def test_other_stages_refuse_to_come_after_it(stage: str, vit: VitModel) -> None:
    made = plan(vit, SparsifyConfig(rank=4, pattern="low_rank")).model
    options, reason = REFUSED[stage]
    config = configured(stage, options)
    with pytest.raises(InputError, match=reason) as error:
        stage_of(config).plan(made, config)
    assert str(error.value).startswith("stages.second")
    assert "\n" not in str(error.value)


def test_quantized_products_are_exported(vit: VitModel, context: Context, tmp_path: Path) -> None:
    """The layers of low rank are Linears, and so is what quantize makes of them."""
    made = run(vit, context, rank=4)
    config = configured("quantize", AFTER["quantize"])
    model = stage_of(config).run(made, config, context).model
    path = tmp_path / "m.onnx"
    export_onnx(model, path, {})
    assert check_parity(path, model, images_of(context)[:4], 1)["passed"]
