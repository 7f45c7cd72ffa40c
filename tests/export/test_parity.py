"""The check has to catch what it is there for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from helpers.models import images_of
from vitcompress import targets
from vitcompress.errors import ParityError
from vitcompress.export import parity
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.methods import quantizer
from vitcompress.model.architecture import QuantizedLayer, VitModel
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.model.structure import float_twin
from vitcompress.stages.context import Context
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.stage import plan
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import quantize

Export = Callable[..., dict[str, int]]


@pytest.fixture
def pixels(context: Context) -> Tensor:
    return images_of(context)[:4]


def altered(path: Path, name: str, change: object) -> None:
    """Apply `change` to the initializer `name` of the file."""
    model = onnx.load(path)
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    values = change(numpy_helper.to_array(tensor).copy())  # type: ignore[operator]
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)


def quantized(vit: VitModel, context: Context, **settings: object) -> VitModel:
    given = {"rounding": "nearest", "residual": 0.0, **settings}
    with torch.no_grad():
        return quantize(vit, QuantizeConfig.model_validate(given), context).model


def test_a_float_export_passes_and_a_changed_weight_does_not(
    vit: VitModel, pixels: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(vit, path, {})
    assert check_parity(path, vit, pixels, 1)["passed"]
    altered(path, "head.bias", lambda b: b + 0.01)
    with pytest.raises(ParityError, match=r"differ by up to 0\.01"):
        check_parity(path, vit, pixels, 1)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_codes_that_are_multiplied_in_floats_are_held_to_what_floats_are(
    target: str, vit: VitModel, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    model = quantized(vit, context, bits=4, activations="float")
    path, twin = tmp_path / "m.onnx", float_twin(model.module)
    torch.testing.assert_close(model.module(pixels), twin(pixels))
    export_onnx(model, path, {}, target)
    facts = check_parity(path, model, pixels, 1, target)
    assert facts["max_logit_difference"] < 1e-4 * model.module(pixels).abs().max()
    assert not {"fused_layers", "mean_quantization_noise"} & set(facts)
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for name, layer in model.anatomy.quantized().items():
        assert np.array_equal(tensors[f"{name}.codes"], layer.codes.numpy())
    altered(path, "blocks.1.mlp.fc1.codes", np.bitwise_not)
    with pytest.raises(ParityError, match=r"differ by up to"):
        check_parity(path, model, pixels, 1, target)


def test_one_image_in_eight_may_have_a_tie_where_tokens_merge(
    vit: VitModel, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = images_of(context)[:8]
    config = MergeConfig.model_validate({"method": "tome", "schedule": [12, 12]})
    for model in (vit, plan(vit, config).model):
        merges, path = model is not vit, tmp_path / "m.onnx"
        logits = model.module(pixels).numpy()
        for ties in (1, 2):
            other = logits.copy()
            other[:ties] += 1
            answers = SimpleNamespace(run=lambda _, other=other: other)
            runtime = SimpleNamespace(session=lambda *_, answers=answers, **__: answers)
            monkeypatch.setattr(targets, "load_target", lambda _, runtime=runtime: runtime)
            if merges and ties == 1:
                assert check_parity(path, model, pixels, 1)["tied_images"] == 1
                continue
            with pytest.raises(ParityError, match=r"differ by up to 1 "):
                check_parity(path, model, pixels, 1)


@pytest.mark.parametrize(("activations", "residual"), [("static", 1.0), ("dynamic", 0.0)])
def test_a_quantized_export_passes(
    activations: str,
    residual: float,
    vit: VitModel,
    context: Context,
    pixels: Tensor,
    tmp_path: Path,
) -> None:
    model = quantized(
        vit, context, activations=activations, residual=residual, layers=["blocks.*", "head"]
    )
    path = tmp_path / "m.onnx"
    export_onnx(model, path, {})
    facts = check_parity(path, model, pixels, 1)
    assert facts["fused_layers"] == 9
    assert facts["worst_layer_mismatch"] <= 1e-3


def test_layers_that_are_alike_share_a_function(
    vit: VitModel, context: Context, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(quantized(vit, context, bits=4, pin={"blocks.1.*": 8}), path, {})
    exported = onnx.load(path)
    used = {n.name: n.op_type for n in exported.graph.node if n.domain == "vitcompress"}
    assert len(used) == 8
    # Bodies differ in the width, and where codes are unpacked also in the count of inputs.
    assert used["blocks.0.attn.qkv"] == used["blocks.0.attn.proj"] == used["blocks.0.mlp.fc1"]
    assert len({used[name] for name in used if name.startswith("blocks.1.")}) == 1
    assert {f.name for f in exported.functions} == set(used.values())
    assert len(exported.functions) == 3


def test_one_changed_code_is_found_with_its_layer(
    vit: VitModel, context: Context, pixels: Tensor, tmp_path: Path, export_once: Export
) -> None:
    model = quantized(vit, context)
    path = tmp_path / "m.onnx"
    export_once(model, path, {})

    def one_more(codes: np.ndarray) -> np.ndarray:
        codes[0, 0] ^= 8
        return codes

    altered(path, "blocks.1.mlp.fc1.codes", one_more)
    with pytest.raises(ParityError, match=r"blocks\.1\.mlp\.fc1"):
        check_parity(path, model, pixels, 1)


def test_a_layer_that_is_not_fused_is_named(
    vit: VitModel, context: Context, pixels: Tensor, tmp_path: Path, export_once: Export
) -> None:
    model = quantized(vit, context)
    path = tmp_path / "m.onnx"
    export_once(model, path, {})
    graph_model = onnx.load(path)
    call = next(node for node in graph_model.graph.node if node.name == "blocks.0.attn.proj")
    (function,) = (f for f in graph_model.functions if f.name == call.op_type)
    floats = graph_model.functions.add()  # the same product in floats, which has no integer kernel
    floats.CopyFrom(function)
    floats.name = call.op_type = "floats"
    (product,) = (node for node in floats.node if node.op_type == "MatMulInteger")
    product.op_type = "MatMul"
    position = list(floats.node).index(product)
    for name in product.input[:2]:
        cast = onnx.helper.make_node("Cast", [name], [f"{name}_f"], to=onnx.TensorProto.FLOAT)
        floats.node.insert(position, cast)
    product.input[:] = [f"{name}_f" for name in product.input[:2]]
    onnx.save(graph_model, path)
    with pytest.raises(ParityError, match=r"blocks\.0\.attn\.proj: onnxruntime did not fuse"):
        check_parity(path, model, pixels, 1)


@pytest.mark.parametrize("bits", [8, 2])
def test_a_model_beyond_its_quantization_noise_fails(
    bits: int, vit: VitModel, context: Context, pixels: Tensor, tmp_path: Path, export_once: Export
) -> None:
    model = quantized(vit, context, bits=bits)
    path = tmp_path / "m.onnx"
    export_once(model, path, {})
    # What rounding the weights has changed must not hide what the export changes.
    lost = float((model.module(pixels) - vit.module(pixels)).abs().mean())
    altered(path, "head.bias", lambda b: b + 2 * lost if bits == 8 else b + lost)
    with pytest.raises(ParityError, match="beyond the quantization noise"):
        check_parity(path, model, pixels, 1)


def by_hand(vit: VitModel, layers: list[str], terms: int, activations: str) -> VitModel:
    """The model with these layers quantized, all their weights and biases zero."""
    kinds = {n: QuantizedLayer(bits=8, activations=activations, terms=terms) for n in layers}
    for name, kind in kinds.items():
        linear = vit.module.get_submodule(name)
        twin = QuantizedLinear(linear.in_features, linear.out_features, **kind.model_dump())
        twin.codes = quantizer.pack_weight(torch.zeros_like(linear.weight), 8)
        twin.scale = torch.ones(linear.out_features)
        if activations == "static":
            twin.activation_scale = torch.tensor(0.02)
            twin.activation_zero_point = torch.tensor(128, dtype=torch.uint8)
        vit.module.set_submodule(name, twin)
    return replace(vit, architecture=vit.architecture.model_copy(update={"quantized": kinds}))


@pytest.mark.parametrize(("terms", "activations"), [(1, "static"), (2, "dynamic")])
def test_layers_with_equal_tensors_are_told_apart(
    terms: int, activations: str, vit: VitModel, pixels: Tensor, tmp_path: Path
) -> None:
    model = by_hand(vit, ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2"], terms, activations)
    path = tmp_path / "m.onnx"
    export_onnx(model, path, {})
    assert check_parity(path, model, pixels, 1)["fused_layers"] == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("merges", [False, True])
def test_one_image_without_numbers_fails_on_either_side(
    bad: float, merges: bool, vit: VitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MergeConfig.model_validate({"method": "tome", "schedule": [12, 12]})
    model = plan(vit, config).model if merges else vit
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = model.module(images)
    broken = logits.clone()
    broken[3, 2] = bad
    for theirs, ours in ((broken, logits), (logits, broken), (broken, broken)):
        answers = SimpleNamespace(run=lambda _, theirs=theirs: theirs.numpy())
        runtime = SimpleNamespace(session=lambda *_, answers=answers, **__: answers)
        monkeypatch.setattr(targets, "load_target", lambda _, runtime=runtime: runtime)
        fixed = SimpleNamespace(
            module=lambda _, ours=ours: ours,
            architecture=model.architecture,
            anatomy=SimpleNamespace(quantized=dict),
        )
        with pytest.raises(ParityError, match="infinite or no number for 1 of 8 images"):
            check_parity(Path("m.onnx"), fixed, images, 1)  # type: ignore[arg-type]


def test_a_layer_whose_output_is_no_number_does_not_match() -> None:
    layer = QuantizedLinear(4, 3, 8, "dynamic")
    layer.codes = quantizer.pack_weight(torch.ones(3, 4), 8)
    layer.scale = torch.ones(3)
    x = torch.randn(2, 4)
    assert parity.mismatch(layer, x, layer(x)) == 0
    assert parity.mismatch(layer, x, torch.full((2, 3), torch.nan)) == 1


@pytest.mark.parametrize("terms", [1, 2])
def test_an_input_between_two_codes_may_have_either(terms: Literal[1, 2]) -> None:
    layer = QuantizedLinear(4, 3, 8, "static", terms)
    weight = torch.tensor([[90.0, 1.0, 0.0, 2.0]]).expand(3, 4)
    layer.codes, layer.scale = quantizer.pack_weight(weight, 8), torch.full((3,), 0.01)
    layer.activation_scale = torch.tensor(0.5)
    x = torch.tensor([[3.25, 1.1, 2.3, 0.6], [3.24, 1.1, 2.3, 0.6]])  # 6.5 and 6.48 steps
    other = layer(x)
    nearest = 90 * 0.5 * 0.01 / (1 if terms == 1 else 256)
    assert parity.mismatch(layer, x, other) == 0
    other[0] += nearest
    assert parity.mismatch(layer, x, other) == 0
    other[0, 0] += 2 * nearest  # more than any choice of codes explains
    assert parity.mismatch(layer, x, other) == pytest.approx(1 / 6)
    other[1, 0] += nearest  # of no tied input
    assert parity.mismatch(layer, x, other) == pytest.approx(2 / 6)
