"""ONNX files in onnxruntime: same logits, same stored bytes, integer kernels, nothing else."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

import vitcompress
from vitcompress.export import onnx as export
from vitcompress.export.onnx import INPUT, OUTPUT, export_onnx, facts_of, metadata
from vitcompress.methods import quantizer
from vitcompress.model.architecture import (
    Architecture,
    QuantizedLayer,
    VitModel,
    set_tail,
    stored_tensors,
)
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.targets.onnxruntime import load_session

MakeVit = Callable[..., VitModel]

FACTS = {"note": 'é, ≤ and "quotes"', "empty": ""}
SAID = {
    **FACTS,
    "target": "onnxruntime",
    "runtime": "onnxruntime>=1.24",
    "floats": "float32",
}
# Every width that is packed, static and dynamic, one term and two, in four sizes of layer.
QUANTIZED = {
    "blocks.0.attn.qkv": QuantizedLayer(bits=2, activations="static"),
    "blocks.0.attn.proj": QuantizedLayer(bits=3, activations="static"),
    "blocks.0.mlp.fc1": QuantizedLayer(bits=4, activations="static", group=16),
    "blocks.0.mlp.fc2": QuantizedLayer(bits=6, activations="static", terms=2),
    "blocks.1.attn.qkv": QuantizedLayer(bits=8, activations="dynamic", terms=2),
    "blocks.1.attn.proj": QuantizedLayer(bits=6, activations="dynamic"),
    "blocks.1.mlp.fc1": QuantizedLayer(bits=8, activations="dynamic", terms=2, residual_tokens=1),
    "blocks.1.mlp.fc2": QuantizedLayer(bits=8, activations="static", terms=2, residual_tokens=1),
    "head": QuantizedLayer(bits=8, activations="static"),
}
HALF, CODED = ("pos_embed", "cls_token", "blocks.0.mlp.fc1.scale"), ("patch_embed.proj.weight",)


def uneven(levels: int) -> Tensor:
    """A table of so many levels."""
    return (1.5 * (torch.arange(levels) - levels // 2)).round().to(torch.int8)


def quantized_twin(linear: nn.Linear, layer: QuantizedLayer, x: Tensor) -> QuantizedLinear:
    """`linear` rounded to nearest, its static range that of `x`."""
    twin = QuantizedLinear(linear.in_features, linear.out_features, **layer.model_dump())
    if layer.levels is not None:
        twin.table = uneven(layer.levels)
    twin.scale, multipliers = quantizer.weight_scale(linear.weight, twin.levels, None, layer.group)
    step = quantizer.weight_step(twin.scale, multipliers, layer.group, linear.in_features)
    codes = quantizer.round_weight(linear.weight, step, twin.levels)
    if multipliers is not None:
        twin.multipliers = quantizer.pack_multipliers(multipliers)
    twin.codes = quantizer.pack_weight(codes, twin.levels)
    twin.bias = linear.bias.detach().clone()
    if layer.activations == "static":
        twin.activation_scale, zero_point = quantizer.activation_parameters(x.amin(), x.amax())
        twin.activation_zero_point = zero_point.to(torch.uint8)
    return twin


def quantize_by_hand(vit: VitModel, pixels: Tensor) -> VitModel:
    for name, layer in QUANTIZED.items():
        linear, seen = vit.module.get_submodule(name), []
        handle = linear.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        vit.module(pixels)
        handle.remove()
        vit.module.set_submodule(name, quantized_twin(linear, layer, seen[0]))
    for name in HALF:
        tensor = vit.module.state_dict()[name]
        tensor.copy_(tensor.half())
    for name in CODED:
        codes, scale = quantizer.byte_codes(vit.module.get_parameter(name))
        vit.module.get_parameter(name).copy_(codes * scale)
    update = {"quantized": QUANTIZED, "half": HALF, "coded": CODED}
    described = vit.architecture.model_copy(update=update)
    return replace(vit, architecture=described)


class Bank(nn.Module):
    """Layers side by side on one input, so that none sees the rounding of another."""

    def __init__(self, layers: dict[str, QuantizedLinear]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.flatten(1)
        return torch.cat([layer(x) for layer in self.layers.values()], 1)


BANK = [
    QuantizedLayer(bits=bits, activations=activations, terms=terms)
    for bits, activations, terms in product(range(2, 9), ("static", "dynamic"), (1, 2))
] + [
    QuantizedLayer(bits=bits, activations=activations, group=group)
    for bits, activations, group in product((2, 3, 4, 5, 6), ("static", "dynamic"), (9, 16))
]
BANK += [
    QuantizedLayer(
        bits=(levels - 1).bit_length(), activations=activations, group=group, levels=levels
    )
    for levels, activations, group in product(
        (3, 4, 8, 16, 32), ("static", "dynamic", "float"), (None, 16)
    )
]


def bank(vit: VitModel) -> VitModel:
    """All kinds of layers, 45 → 9: sizes that no packing divides."""
    generator = torch.Generator().manual_seed(7)
    layers = {}
    for place, layer in enumerate(BANK):
        linear = nn.Linear(45, 9).requires_grad_(False)
        linear.weight.normal_(generator=generator)
        linear.bias.normal_(generator=generator)
        layers[str(place)] = quantized_twin(linear, layer, torch.tensor([-2.0, 2.5]))
    architecture = Architecture(
        timm="none", quantized={f"layers.{name}": BANK[int(name)] for name in layers}
    )
    preprocess = vit.preprocess.model_copy(update={"input_size": (3, 5)})
    return VitModel(Bank(layers).eval(), architecture, preprocess)


class Exported:
    """A model and its file."""

    def __init__(self, model: VitModel, path: Path) -> None:
        self.model, self.path = model, path
        export_onnx(model, path, FACTS)
        self.proto = onnx.load(path)
        self.initializers = {i.name: i for i in self.proto.graph.initializer}

    def run(self, pixels: Tensor) -> np.ndarray:
        return run_file(self.path, pixels)

    def optimised(self) -> onnx.ModelProto:
        """What onnxruntime makes of the file."""
        path = self.path.with_suffix(".optimised.onnx")
        load_session(self.path, 1, optimized=path)
        return onnx.load(path)


def run_file(path: Path, pixels: Tensor) -> np.ndarray:
    (logits,) = load_session(path, 1).run([OUTPUT], {INPUT: pixels.numpy()})
    return np.asarray(logits)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def plain(make_vit: MakeVit, folder: Path) -> Exported:
    return Exported(make_vit(), folder / "plain.onnx")


@pytest.fixture(scope="module")
def quantized(make_vit: MakeVit, pixels: Tensor, folder: Path) -> Exported:
    return Exported(quantize_by_hand(make_vit(), pixels), folder / "quantized.onnx")


@pytest.fixture(scope="module")
def side_by_side(make_vit: MakeVit, folder: Path) -> Exported:
    return Exported(bank(make_vit()), folder / "bank.onnx")


def near(found: np.ndarray, expected: Tensor, tolerance: float) -> bool:
    largest = np.abs(found - expected.numpy()).max()
    return bool(found.shape == tuple(expected.shape) and largest <= tolerance)


@pytest.mark.parametrize("count", [1, 3])
def test_a_float_export_computes_what_torch_computes(
    count: int, plain: Exported, pixels: Tensor
) -> None:
    assert near(plain.run(pixels[:count]), plain.model.module(pixels[:count]), 1e-4)


VARIANTS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "tail, LayerScale, qk_norm": (
        "vit_tiny_patch16_224",
        {"init_values": 0.1, "qk_norm": True, "reg_tokens": 2},
        3,
    ),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, 2),
    "average pooling, scaled norms": (
        "vit_tiny_patch16_224",
        {"global_pool": "avg", "class_token": False, "scale_attn_norm": True},
        None,
    ),
}


@pytest.mark.parametrize(("name", "options", "tail"), VARIANTS.values(), ids=VARIANTS)
def test_relatives_of_the_plain_model_export_too(
    name: str,
    options: dict[str, Any],
    tail: int | None,
    make_vit: MakeVit,
    pixels: Tensor,
    tmp_path: Path,
) -> None:
    model = make_vit(name, depth=1, **options)
    if tail is not None:
        set_tail(model.module, tail)
    export_onnx(model, tmp_path / "model.onnx", {})
    for count in (1, 3):
        logits = model.module(pixels[:count])
        assert near(run_file(tmp_path / "model.onnx", pixels[:count]), logits, 1e-4)


@pytest.mark.parametrize("which", ["plain", "quantized"])
def test_only_the_batch_is_dynamic(which: str, request: pytest.FixtureRequest) -> None:
    graph = request.getfixturevalue(which).proto.graph
    for values, name, dims in ((graph.input, INPUT, [3, 32, 32]), (graph.output, OUTPUT, [10])):
        assert [value.name for value in values] == [name]
        shape = values[0].type.tensor_type.shape.dim
        assert shape[0].dim_param == "batch"
        assert [dim.dim_value for dim in shape[1:]] == dims


def test_attention_is_one_operator(plain: Exported) -> None:
    assert [n.op_type for n in plain.proto.graph.node].count("Attention") == 2


def test_the_file_holds_the_packed_tensors_and_no_others(quantized: Exported) -> None:
    stored = stored_tensors(quantized.model)
    for name, layer in QUANTIZED.items():
        codes = numpy_helper.to_array(quantized.initializers[f"{name}.codes"])
        assert codes.dtype == np.uint8
        assert codes.tobytes() == stored[f"{name}.codes"].numpy().tobytes()
        inputs = quantized.model.module.get_submodule(name).in_features
        assert codes.shape[0] == inputs * layer.bits // 8
    tensors = sum(t.numel() * t.element_size() for t in stored.values())
    held = sum(numpy_helper.to_array(i).nbytes for i in quantized.initializers.values())
    assert held <= tensors + 2000


def test_all_widths_of_all_kinds_are_stored_as_they_are(side_by_side: Exported) -> None:
    for name, tensor in stored_tensors(side_by_side.model).items():
        if name.endswith(("codes", "multipliers")):
            held = numpy_helper.to_array(side_by_side.initializers[name])
            assert held.tobytes() == tensor.numpy().tobytes()


def test_halves_are_stored_in_half(quantized: Exported) -> None:
    stored = stored_tensors(quantized.model)
    for name in HALF:
        held = quantized.initializers[f"{name}.float16"]
        assert held.data_type == TensorProto.FLOAT16
        assert numpy_helper.to_array(held).tobytes() == stored[name].numpy().tobytes()
        assert name not in quantized.initializers


def test_coded_weights_are_stored_as_codes(quantized: Exported) -> None:
    stored = stored_tensors(quantized.model)
    for name in CODED:
        held = quantized.initializers[f"{name}.int8"]
        assert held.data_type == TensorProto.INT8
        assert numpy_helper.to_array(held).tobytes() == stored[name].numpy().tobytes()
        scale = numpy_helper.to_array(quantized.initializers[f"{name}.scale"])
        assert scale.tobytes() == stored[f"{name}.scale"].numpy().tobytes()
        assert name not in quantized.initializers


@pytest.mark.parametrize("count", [1, 3])
def test_on_equal_inputs_every_kind_of_layer_agrees(count: int, side_by_side: Exported) -> None:
    generator = torch.Generator().manual_seed(8)
    pixels = torch.randn(count, 3, 3, 5, generator=generator) * 1.2  # some values are clipped
    expected = side_by_side.model.module(pixels)
    found = side_by_side.run(pixels)
    for place, layer in enumerate(BANK):
        outputs = slice(9 * place, 9 * place + 9)
        assert near(found[:, outputs], expected[:, outputs], 1e-5), layer


@pytest.mark.parametrize("count", [1, 3])
def test_a_quantized_export_agrees_with_torch(
    count: int, quantized: Exported, plain: Exported, pixels: Tensor
) -> None:
    dense = plain.model.module(pixels[:count])
    expected = quantized.model.module(pixels[:count])
    apart = np.linalg.norm(quantized.run(pixels[:count]) - expected.numpy())
    assert apart <= 0.05 * np.linalg.norm(expected)
    assert (expected - dense).norm() > 0.1 * dense.norm()  # codes of 2 bits: another model


def test_every_quantized_layer_becomes_one_integer_kernel_a_term(quantized: Exported) -> None:
    nodes = quantized.optimised().graph.node
    assert not [n.name for n in nodes if n.op_type in ("MatMulInteger", "BitwiseAnd", "BitShift")]
    fused = [n for n in nodes if n.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")]
    for name, layer in QUANTIZED.items():
        mine = [n for n in fused if f"{name}.scale" in n.input]
        assert len(mine) == layer.terms
    assert len(fused) == sum(layer.terms for layer in QUANTIZED.values())


def test_a_layer_is_one_node_of_its_name(quantized: Exported) -> None:
    functions = {function.name: function for function in quantized.proto.functions}
    calls = {n.name: n for n in quantized.proto.graph.node if n.domain == "vitcompress"}
    assert set(calls) == set(QUANTIZED)
    assert {call.op_type for call in calls.values()} == set(functions)
    for name, layer in QUANTIZED.items():
        kinds = [n.op_type for n in functions[calls[name].op_type].node]
        assert kinds.count("MatMulInteger") == layer.terms
        assert kinds[-1] == ("Concat" if layer.residual_tokens else "Add")


@pytest.mark.parametrize("which", ["plain", "quantized"])
def test_the_file_knows_nothing_of_the_sources(which: str, request: pytest.FixtureRequest) -> None:
    exported = request.getfixturevalue(which)
    proto, content = exported.proto, exported.path.read_bytes()
    for node in proto.graph.node:
        assert not node.metadata_props
        assert not node.doc_string
    assert not proto.graph.value_info
    assert not proto.graph.metadata_props
    assert not proto.graph.doc_string
    home = str(Path(vitcompress.__file__).parent).encode()
    for trace in (b"site-packages", b'File "', b"stack_trace", home):
        assert trace not in content
    nodes = len(proto.graph.node) + sum(len(function.node) for function in proto.functions)
    assert len(content) < 150 * nodes + 2000 + sum(
        i.ByteSize() for i in exported.initializers.values()
    )


def test_facts_can_be_read_back(plain: Exported) -> None:
    assert metadata(plain.path) == SAID
    assert {p.key for p in plain.proto.metadata_props} == {f"vitcompress.{key}" for key in SAID}


def test_facts_tell_how_to_use_the_model(quantized: Exported) -> None:
    model = quantized.model
    facts = facts_of(model, {"seed": "3"})
    assert facts["timm"] == "vit_tiny_patch16_224"
    assert facts["seed"] == "3"
    assert type(model.preprocess).model_validate_json(facts["preprocessing"]) == model.preprocess
    found = {n: QuantizedLayer(**v) for n, v in json.loads(facts["quantization"]).items()}
    assert found == QUANTIZED


def test_two_exports_are_equal_byte_by_byte_and_leave_the_model_as_it_was(
    quantized: Exported, tmp_path: Path
) -> None:
    before = quantized.model.fingerprint()
    export_onnx(quantized.model, tmp_path / "again.onnx", FACTS)
    assert (tmp_path / "again.onnx").read_bytes() == quantized.path.read_bytes()
    assert quantized.model.fingerprint() == before
    assert not quantized.model.module.training


def test_the_weights_of_a_huge_model_lie_beside_the_file(
    plain: Exported, pixels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "EXTERNAL_BYTES", 0)
    path = tmp_path / "model.onnx"
    export_onnx(plain.model, path, FACTS)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert path.stat().st_size < 0.2 * plain.path.stat().st_size
    assert metadata(path) == SAID
    assert near(run_file(path, pixels), plain.model.module(pixels), 1e-4)
