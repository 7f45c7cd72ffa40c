"""Files for any runtime: what is in them, and that they compute what the model computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.methods import quantizer
from vitcompress.model.architecture import VitModel
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.stage import STAGE as MERGE
from vitcompress.terms import Activations

# Shifts of bits are not exact in every runtime, and functions not known to all.
UNKNOWN = {"Attention", "RotaryEmbedding", "BitShift", "BitwiseAnd", "BitwiseOr", "LpNormalization"}
MakeVit = Callable[..., VitModel]


def quantized(
    model: VitModel,
    bits: int,
    activations: Activations = "static",
    terms: Literal[1, 2] = 1,
    residual_tokens: int | None = None,
    group: int | None = None,
) -> VitModel:
    """The model with all layers of its blocks in integers (in place)."""
    for name, linear in model.anatomy.linears().items():
        if not name.startswith("blocks."):
            continue
        sizes = linear.in_features, linear.out_features
        layer = QuantizedLinear(*sizes, bits, activations, terms, residual_tokens, group)
        scale, multipliers = quantizer.weight_scale(linear.weight, bits, None, group)
        step = quantizer.weight_step(scale, multipliers, group, linear.in_features)
        codes = quantizer.round_weight(linear.weight, step, bits)
        layer.codes, layer.scale = quantizer.pack_weight(codes, bits), scale
        layer.bias = linear.bias.detach().clone()
        if multipliers is not None:
            layer.multipliers = quantizer.pack_multipliers(multipliers)
        if activations == "static":
            layer.activation_scale = torch.tensor(0.05)
            layer.activation_zero_point = torch.tensor(120, dtype=torch.uint8)
        model.module.set_submodule(name, layer)
    return model


def merged(model: VitModel) -> VitModel:
    config = MergeConfig.model_validate({"name": "m", "method": "tome", "budget": {"macs": 0.8}})
    return MERGE.plan(model, config).model


KINDS: dict[str, Callable[[MakeVit], VitModel]] = {
    "float": lambda make: make(),
    "8 bits in two terms": lambda make: quantized(make(), 8, terms=2, residual_tokens=1),
    "4 bits in groups": lambda make: quantized(make(), 4, group=32),
    "3 bits, dynamic": lambda make: quantized(make(), 3, "dynamic"),
    "rotary": lambda make: make("eva02_tiny_patch14_224"),
    "merged": lambda make: merged(make(depth=3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_old_operators_compute_the_same(
    kind: str, make_vit: MakeVit, pixels: Tensor, tmp_path: Path
) -> None:
    model = KINDS[kind](make_vit)
    export_onnx(model, path := tmp_path / "m.onnx", {}, "portable")
    written = onnx.load(path)
    assert [(each.domain, each.version) for each in written.opset_import] == [("", 17)]
    assert written.ir_version <= 8
    assert not written.functions
    assert not UNKNOWN & {node.op_type for node in written.graph.node}
    facts = check_parity(path, model, pixels, 1, "portable")
    layers = model.anatomy.quantized()
    assert facts.get("fused_layers", 0) == len(layers)
    if layers:
        assert facts["worst_layer_mismatch"] == 0
    nodes = {node.name.partition("/")[0] for node in written.graph.node}
    assert set(layers) <= nodes


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_openvino_computes_the_same(
    kind: str, make_vit: MakeVit, pixels: Tensor, tmp_path: Path
) -> None:
    openvino: Any = pytest.importorskip("openvino", reason="needs openvino")
    model = KINDS[kind](make_vit)
    export_onnx(model, path := tmp_path / "m.onnx", {}, "portable")
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    found = core.compile_model(core.read_model(path), "CPU", exact)(pixels.numpy())[0]
    expected = model.module(pixels).numpy()
    # At 8 bits its kernels may saturate where the processor has no VNNI.
    allowed = 0.1 if "8 bits" in kind else 1e-5
    assert np.abs(found - expected).max() <= allowed * np.abs(expected).max()
