"""ONNX files: a module exported, cleaned and described."""

import ast
import json
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import nn

from vitcompress.errors import InputError
from vitcompress.export.functions import outline
from vitcompress.export.translate import OPSET, TABLE
from vitcompress.methods import quantizer
from vitcompress.model.architecture import SCALE, Architecture, VitModel, stored_in_half
from vitcompress.model.compact import exportable

INPUT, OUTPUT = "pixels", "logits"
PREFIX = "vitcompress."
_SCOPES = "pkg.torch.onnx.name_scopes"
_OPERATOR = "quantized_linear"
# Protocol buffers end at 2 GB; weights of larger models lie beside the file.
_EXTERNAL_BYTES = 1_900_000_000
_FOLDED_ELEMENTS = 16


def export_onnx(model: VitModel, path: Path, facts: Mapping[str, str]) -> None:
    """Write `model` to `path`: pixels float32 [batch, C, H, W] → logits [batch, classes].

    Only the batch is dynamic. `facts` go into the file's metadata as `vitcompress.KEY`. A quantized
    layer is one node, named as the layer: the call of a function.
    """
    module = exportable(model.module, model.architecture.sparse)
    graph_model = _traced(module, model.preprocess.channels, model.preprocess.input_size)
    layers = _quantized_layers(graph_model.graph)
    outline(graph_model, layers, module.state_dict().keys(), _OPERATOR)
    _store_small(graph_model.graph, model.architecture)
    for node in graph_model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    graph_model.metadata_props.clear()
    graph_model.graph.metadata_props.clear()
    graph_model.producer_name, graph_model.producer_version = "vitcompress", version("vitcompress")
    graph_model.metadata_props.update({PREFIX + key: value for key, value in facts.items()})
    proto = ir.to_proto(graph_model)
    _keep_shapes(proto.graph)
    large = sum(t.nbytes for t in model.module.state_dict().values()) > _EXTERNAL_BYTES
    onnx.save(proto, path, save_as_external_data=large, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)


def load_onnx(path: Path) -> onnx.ModelProto:
    """The ONNX file at `path`, tensors beside it left out. Raises `InputError` for other files."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's own exceptions share no base class
        model = onnx.ModelProto()
    if not model.graph.node:
        raise InputError(
            f"{path}: damaged, or not an ONNX file; give one that `export` or `run` has written"
        )
    return model


def metadata(path: Path) -> dict[str, str]:
    """The facts that `export_onnx` wrote, by key without the prefix; raises as `load_onnx` does."""
    props = load_onnx(path).metadata_props
    return {p.key.removeprefix(PREFIX): p.value for p in props if p.key.startswith(PREFIX)}


def _keep_shapes(graph: onnx.GraphProto) -> None:
    """Leave only the shapes that onnxruntime cannot infer, and needs to fuse what follows."""
    gathered = {name for node in graph.node if node.op_type == "GatherND" for name in node.output}
    kept = [value for value in graph.value_info if value.name in gathered]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _traced(module: nn.Module, channels: int, size: tuple[int, int]) -> ir.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own code
        program = torch.onnx.export(
            module,
            (torch.zeros(2, channels, *size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65535)},),
            custom_translation_table=TABLE,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        # Small constants only: packed codes must stay packed, and scales apart.
        onnxscript.optimizer.optimize(program.model, input_size_limit=_FOLDED_ELEMENTS)
    return program.model


def _quantized_layers(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """The nodes of each quantized layer, those that unpack its weights included."""
    by_scope: dict[str, list[ir.Node]] = {}
    quantized: dict[str, None] = {}
    for node in graph:
        scopes: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
        scope, operator = ["", *scopes][-2:]
        by_scope.setdefault(scope, []).append(node)
        if operator.startswith(_OPERATOR):
            quantized[scope] = None
    return {name: by_scope[name] for name in quantized}


def _store_small(graph: ir.Graph, architecture: Architecture) -> None:
    """Store initializers in float16 or as 8-bit codes, followed by nodes that load time folds."""
    for name in (*stored_in_half(architecture), *architecture.coded):
        value = graph.initializers.get(name)
        if value is None or value.const_value is None:
            continue  # a tensor that this graph does not read
        floats = value.const_value.numpy()
        if name in architecture.coded:
            codes, scale = quantizer.byte_codes(torch.from_numpy(floats.copy()))
            held = _initializer(graph, f"{name}.int8", codes.numpy())
            cast = ir.node("Cast", [held], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
            factor = _initializer(graph, name + SCALE, scale.numpy())
            nodes = [cast, ir.node("Mul", [cast.outputs[0], factor], name=f"{name}/Mul")]
        else:
            held = _initializer(graph, f"{name}.float16", floats.astype("float16"))
            nodes = [ir.node("Cast", [held], {"to": ir.DataType.FLOAT})]
        value.replace_all_uses_with(nodes[-1].outputs[0])
        del graph.initializers[name]
        nodes[-1].outputs[0].name = name
        graph.insert_before(graph[0], nodes)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.initializers[name] = value
    return value


def facts_of(model: VitModel, extra: Mapping[str, str]) -> dict[str, str]:
    """What an exported file says of itself: how to prepare images, and what was quantized."""
    layers = model.architecture.quantized
    quantized = {name: layer.model_dump(exclude_defaults=True) for name, layer in layers.items()}
    return {
        "task": model.task.name,
        "preprocessing": model.preprocess.model_dump_json(),
        "quantization": json.dumps(quantized),
        "timm": model.architecture.timm,
        **extra,
    }
