"""Codebooks in the quantize stage: what is stored, planned and exported, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.models import BLOCKS, quantized_layers, rebuilt
from vitcompress.errors import InputError
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.model.architecture import VitModel, stored_tensors
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import plan, quantize
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.stage import STAGE as SPARSIFY


def config_of(codebook: str, bits: Any, **options: Any) -> QuantizeConfig:
    fields = {"residual": 0, "reparametrise": False, "pin": {"head": 8}, "group": 8, **options}
    layers = ("blocks.0.*", "head")
    return QuantizeConfig(codebook=codebook, bits=bits, layers=layers, **fields)


@pytest.mark.parametrize(("name", "bits"), [("power_of_two", 4), ("kmeans", 3), ("ternary", 2)])
def test_the_layers_hold_its_levels_and_come_back_from_a_file(
    name: str, bits: int, vit: VitModel, context: Context, pixels: Tensor
) -> None:
    config = config_of(name, bits)
    model = quantize(vit, config, context).model
    layers = quantized_layers(model.module)
    assert list(layers) == [*BLOCKS[:4], "head"]
    assert layers["head"].table is None  # of 8 bits, which are even in all codebooks
    for layer in list(layers.values())[:4]:
        assert layer.table is not None
        held = layer.table if layer.multipliers is None else layer.table[:, None] * torch.arange(9)
        assert torch.isin(layer.whole_weight().abs(), held.float().abs()).all()
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))
    planned = plan(vit, config).model
    assert planned.architecture.quantized == model.architecture.quantized
    sizes = [
        {name: (t.shape, t.dtype) for name, t in stored_tensors(m).items()}
        for m in (planned, model)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("activations", "sparse"), [("static", False), ("dynamic", True)])
def test_the_exported_file_computes_the_same_and_holds_the_same_tensors(
    activations: str,
    sparse: bool,
    vit: VitModel,
    context: Context,
    pixels: Tensor,
    tmp_path: Path,
) -> None:
    if sparse:
        vit = SPARSIFY.run(vit, SparsifyConfig(pattern="2:4", layers=("*.mlp.*",)), context).model
    config = config_of("power_of_two", 3, activations=activations, residual=None)
    model = quantize(vit, config, context).model
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))
    export_onnx(model, tmp_path / "model.onnx", {})
    facts = check_parity(tmp_path / "model.onnx", model, pixels, 1)
    assert facts["passed"]
    assert facts["fused_layers"] == 5


def test_uniform_levels_are_what_there_is_without(vit: VitModel, context: Context) -> None:
    plain = quantize(vit, QuantizeConfig(bits=4, residual=0), context).model
    named = quantize(vit, QuantizeConfig(bits=4, residual=0, codebook="uniform"), context).model
    assert plain.fingerprint() == named.fingerprint()


@pytest.mark.parametrize(
    ("codebook", "bits", "expected"),
    [
        ("ternary", 4, "ternary has levels for 2 bits, not for 4; change stages.quantize.bits"),
        ("power_of_two", 6, "power_of_two has levels for 3, 4 or 5 bits, not for 6"),
        ("kmeans", 8, "kmeans has levels for 2, 3, 4 or 5 bits, not for 8"),
        ("kmeans", {"average": 5, "widths": (4, 6)}, "not for 6"),
    ],
)
def test_a_width_that_a_codebook_lacks_is_refused_before_the_work(
    codebook: str, bits: Any, expected: str, vit: VitModel
) -> None:
    with pytest.raises(InputError, match=rf"^stages\.quantize\.codebook: .*{expected}"):
        plan(vit, config_of(codebook, bits))


def test_widths_of_a_budget_may_be_those_of_a_codebook_and_8(
    vit: VitModel, context: Context
) -> None:
    budget = {"average": 5, "widths": (3, 4, 8)}
    model = quantize(vit, config_of("kmeans", budget, score="uniform"), context).model
    found = model.architecture.quantized.values()
    assert {layer.levels for layer in found} <= {8, 16, None}
    assert all((layer.levels is None) == (layer.bits == 8) for layer in found)
