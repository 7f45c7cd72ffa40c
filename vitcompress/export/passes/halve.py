"""Floats computed in float16, but for what loses by it.

onnxruntime's own `transformers.float16` does not know functions, which quantized layers are calls
of, and moves weights that float16 does not hold to the largest that it does.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitcompress.errors import InputError
from vitcompress.export.passes import Source
from vitcompress.export.passes.outline import DOMAIN

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_FLOAT32 = {
    "BatchNormalization",
    "ConstantOfShape",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LogSoftmax",
    "LpNormalization",
    "RMSNormalization",
    "ScatterElements",  # of sizes; onnxruntime has no kernel for it
    "Softmax",
}
_REDUCTIONS = {"L1", "L2", "LogSumExp", "Mean", "Sum", "SumSquare"}
# Sums of squares pass 65,504 where values pass 256, and exponentials where they pass 11.
_STATISTICS = {f"Reduce{name}" for name in _REDUCTIONS} | {
    *("Clip", "Exp", "Log", "Max", "Min", "Pow", "Reciprocal", "Sqrt"),
}
# What makes a norm of them, before or after.
_ELEMENTWISE = {"Add", "Cast", "Div", "Expand", "Mul", "Neg", "Sub"}


def halve(model: ir.Model, source: Source) -> int:
    """What follows from an image is computed in float16 if asked for, and in float32 all the same:
    norms, softmax, quantized layers, what follows from constants alone, and the file's ends.

    Raises `InputError` for a constant that float16 does not hold.
    """
    if source.floats != "float16":
        return 0
    graph, copies = model.graph, dict[ir.Value, ir.Value]()
    halved = _halved(graph)
    for node in list(graph):
        for place, value in enumerate(node.inputs):
            if value is None:
                continue
            if node in halved and value.dtype == _FLOAT:
                node.replace_input_with(place, _copy(graph, value, _HALF, copies))
            elif node not in halved and value.producer() in halved and value.dtype == _HALF:
                node.replace_input_with(place, _copy(graph, value, _FLOAT, copies))
        if node in halved:
            _write_half(node)
    for place, value in enumerate(graph.outputs):
        if value.dtype == _HALF:
            copy = _copy(graph, value, _FLOAT, copies)
            copy.name, value.name = value.name, copy.name
            graph.outputs[place] = copy
    RemoveUnusedNodesPass()(model)
    return len(halved)


def _halved(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that are to be computed in float16."""
    following: set[ir.Node] = set()
    for node in graph:
        if any(v in graph.inputs or v.producer() in following for v in node.inputs if v):
            following.add(node)
    statistics = {node for node in following if node.op_type in _STATISTICS}
    kept = {n for n in following if n.op_type in _FLOAT32 or n.domain == DOMAIN} | statistics
    for node in following:
        before = {value.producer() for value in node.inputs if value is not None}
        after = {user for value in node.outputs for user in value.consumers()}
        part_of_norm = before & statistics or (after and after <= statistics)
        if node.op_type in _ELEMENTWISE and part_of_norm:
            kept.add(node)
    return following - kept


def _write_half(node: ir.Node) -> None:
    """Let `node`, whose inputs are float16, give float16 (in place)."""
    for value in node.outputs:
        if value.dtype == _FLOAT:
            value.dtype = _HALF
    if node.op_type == "Attention":
        node.attributes.add(ir.AttrInt64("softmax_precision", int(_FLOAT)))
    elif node.op_type == "Cast" and node.attributes.get_int("to") == _FLOAT:
        node.attributes.add(ir.AttrInt64("to", int(_HALF)))


def _copy(
    graph: ir.Graph, value: ir.Value, to: ir.DataType, copies: dict[ir.Value, ir.Value]
) -> ir.Value:
    """The same numbers in the other type, made once."""
    if value not in copies:
        copies[value] = (
            _constant(graph, value) if value.is_initializer() else _cast(graph, value, to)
        )
    return copies[value]


def _constant(graph: ir.Graph, value: ir.Value) -> ir.Value:
    assert value.const_value is not None
    floats = value.const_value.numpy()
    with np.errstate(over="ignore"):  # told below
        rounded = floats.astype(np.float16)
    lost = np.isfinite(floats) & ~np.isfinite(rounded)
    if lost.any():
        raise InputError(
            f"export.floats: {value.name} holds {floats[lost][0]:g}, and float16 ends at 65504; "
            "take float16_weights or float32"
        )
    half = ir.val(f"{value.name}.float16", const_value=ir.tensor(rounded))
    graph.register_initializer(half)
    return half


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType) -> ir.Value:
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast":
        before = producer.inputs[0]
        if before is not None and before.dtype == to:
            return before
    node = ir.node("Cast", [value], {"to": to}, name=f"{value.name}/{to.name}")
    (copy,) = node.outputs
    copy.name, copy.shape, copy.dtype = f"{value.name}.{to.name.lower()}", value.shape, to
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return copy
