"""Operators in the versions that the target knows."""

from collections.abc import Callable

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitcompress.errors import RunError
from vitcompress.export.passes import Source

_REDUCTIONS = "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd"


def lower(model: ir.Model, source: Source) -> int:
    """The operators of the file are those of the opset of the target.

    Raises `RunError` for one that it lacks.
    """
    target, written = source.target, model.opset_imports[""]
    if written <= target.opset:
        return 0
    changed = 0
    for node in model.graph:
        if node.domain or _since(node, written) <= target.opset:
            continue
        if node.op_type not in _LOWERED or not _LOWERED[node.op_type](node):
            raise RunError(
                f"{node.op_type}, of opset {_since(node, written)}: export.target: {target.name} "
                f"has opset {target.opset}; give another target"
            )
        changed += 1
    model.opset_imports[""] = target.opset
    RemoveUnusedNodesPass()(model)
    return changed


def _since(node: ir.Node, opset: int) -> int:
    """The opset that brought an operator in the form it has in `opset`."""
    return int(onnx.defs.get_schema(node.op_type, opset).since_version)


def _split(node: ir.Node) -> bool:
    """In equal parts, which earlier ones make of themselves."""
    count, whole = node.attributes.pop("num_outputs", None), node.inputs[0]
    if count is None:
        return True
    axis = node.attributes.get_int("axis", 0)
    size = None if whole is None or whole.shape is None else whole.shape[axis]
    return isinstance(size, int) and size % count.as_int() == 0


def _reduction(node: ir.Node) -> bool:
    """Its axes are an attribute."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    held = None if axes is None else ir.convenience.get_const_tensor(axes)
    if node.attributes.pop("noop_with_empty_axes", None) is not None and held is None:
        return False
    if held is None:
        return axes is None
    node.attributes.add(ir.AttrInt64s("axes", held.numpy().tolist()))
    node.resize_inputs(1)
    return True


def _pad(node: ir.Node) -> bool:
    """Of all axes."""
    return len(node.inputs) < 4


_LOWERED: dict[str, Callable[[ir.Node], bool]] = {
    "Pad": _pad,
    "Split": _split,
    **dict.fromkeys(_REDUCTIONS, _reduction),
}
"""By operator, what writes a node in its earlier form (in place): whether it could."""
