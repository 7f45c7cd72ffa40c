"""Layers stored without their zeros: nothing is lost, in files and in onnxruntime."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from vitcompress.export.folder import load_folder, save_folder
from vitcompress.export.onnx import INPUT, export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.methods import packing, patterns, quantizer, sparsity
from vitcompress.model.architecture import VitModel, stored_tensors
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.targets.onnxruntime import load_session

PATTERNS = {
    "blocks.0.attn.qkv": "unstructured",
    "blocks.0.mlp.fc1": "16x8",
    "blocks.0.mlp.fc2": "5x7",  # no whole number of them
    "blocks.1.attn.qkv": "2:4",
    "blocks.1.mlp.fc1": "1x4",
    "head": "3x1",
}


def thinned(vit: VitModel, half: tuple[str, ...] = ()) -> VitModel:
    """A model with half of the cells of some layers zero."""
    generator = torch.Generator().manual_seed(3)
    for name, text in PATTERNS.items():
        weight, pattern = vit.module.get_submodule(name).weight, patterns.parse_pattern(text)
        values = sparsity.cells(torch.rand(weight.shape, generator=generator), pattern.cell)
        mask = sparsity.keep(values, pattern, 0.5)
        weight.mul_(sparsity.weight_mask(mask, pattern.cell, weight.shape))
    for name in half:
        vit.module.get_parameter(name).copy_(vit.module.get_parameter(name).half())
    return replace(
        vit, architecture=vit.architecture.model_copy(update={"sparse": PATTERNS, "half": half})
    )


def quantized(vit: VitModel, pixels: Tensor) -> VitModel:
    described = {}
    for place, name in enumerate(PATTERNS):
        linear = vit.module.get_submodule(name)
        seen: list[Tensor] = []
        handle = linear.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        vit.module(pixels)
        handle.remove()
        bits, group = (8, 4, 3, 4, 4, 6)[place], (None, 16, *4 * [None])[place]
        layer = QuantizedLinear(
            linear.in_features, linear.out_features, bits, "static", 1 + place % 2, group=group
        )
        layer.scale, multipliers = quantizer.weight_scale(linear.weight, bits, None, group)
        step = quantizer.weight_step(layer.scale, multipliers, group, linear.in_features)
        layer.codes = quantizer.pack_weight(quantizer.round_weight(linear.weight, step, bits), bits)
        if multipliers is not None:
            layer.multipliers = quantizer.pack_multipliers(multipliers)
        layer.bias = linear.bias.detach().clone()
        layer.activation_scale, zero = quantizer.activation_parameters(
            seen[0].amin(), seen[0].amax()
        )
        layer.activation_zero_point = zero.to(torch.uint8)
        described[name] = {
            "bits": bits,
            "activations": "static",
            "terms": layer.terms,
            "group": group,
        }
        vit.module.set_submodule(name, layer)
    fields = {**vit.architecture.model_dump(), "quantized": described}
    return replace(vit, architecture=type(vit.architecture).model_validate(fields))


@pytest.mark.parametrize("kind", ["float", "half", "codes"])
def test_files_lose_nothing(
    kind: str, make_vit: Callable[..., VitModel], pixels: Tensor, tmp_path: Path
) -> None:
    model = thinned(make_vit(), ("blocks.0.mlp.fc1.weight",) if kind == "half" else ())
    if kind == "codes":
        model = quantized(model, pixels)
    save_folder(model, tmp_path)
    again = load_folder(tmp_path)
    assert again.architecture == model.architecture
    assert torch.equal(again.module(pixels), model.module(pixels))
    file = tmp_path / "model.onnx"
    export_onnx(model, file, {})
    assert check_parity(file, model, pixels, 1)["passed"]


@pytest.mark.parametrize("kind", ["float", "codes"])
def test_the_file_holds_the_stored_tensors_and_onnxruntime_folds_them(
    kind: str, make_vit: Callable[..., VitModel], pixels: Tensor, tmp_path: Path
) -> None:
    model = thinned(make_vit())
    if kind == "codes":
        model = quantized(model, pixels)
    file, optimised = tmp_path / "model.onnx", tmp_path / "optimised.onnx"
    export_onnx(model, file, {})
    held = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(file).graph.initializer}
    for name, tensor in stored_tensors(model).items():
        if name.endswith(("values", "mask", "codes")) and tensor.numel() > 16:  # fewer are folded
            assert np.array_equal(held[name], tensor.numpy())
    load_session(file, 1, optimised)
    graph = onnx.load(optimised).graph
    assert not {node.op_type for node in graph.node} & {"CumSum", "BitShift", "BitwiseAnd"}
    shapes = {tuple(i.dims) for i in graph.initializer}
    for name in PATTERNS:  # the whole matrix, made once
        layer = model.module.get_submodule(name)
        assert (layer.in_features, layer.out_features) in shapes
    run = load_session(file, 1).run(None, {INPUT: pixels.numpy()})[0]
    assert np.isfinite(run).all()


def test_what_is_zero_is_not_stored(make_vit: Callable[..., VitModel]) -> None:
    model = thinned(make_vit())
    stored = stored_tensors(model)
    for name, text in PATTERNS.items():
        high, wide = patterns.parse_pattern(text).cell
        weight = model.module.get_submodule(name).weight
        values, mask = stored[f"{name}.values"], stored[f"{name}.mask"]
        assert f"{name}.weight" not in stored
        assert 0 < values.numel() < 0.65 * weight.numel()
        assert values.shape[1] == high * wide
        assert int(packing.unpack(mask, 2, -(-weight.shape[1] // wide)).sum()) == len(values)
