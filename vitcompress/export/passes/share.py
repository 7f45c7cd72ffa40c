"""What is there twice is there once."""

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

from vitcompress.export.passes import Source
from vitcompress.export.passes.outline import DOMAIN

_ELEMENTS = 1024


def share(model: ir.Model, source: Source) -> int:
    """Of equal small constants and of equal nodes one is left, but for quantized layers.

    Layers that have equal scales (all their weights are zero) keep their own: by its scale a layer
    is known in the kernel that it becomes.
    """
    graph = model.graph
    before = len(graph) + len(graph.initializers)
    own = {
        value
        for node in graph
        if node.domain == DOMAIN
        for value in node.inputs
        if value is not None and value.const_value is not None and len(value.const_value.shape)
    }
    first: dict[tuple[str, bytes], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        if value in own or value.const_value is None or value.const_value.size > _ELEMENTS:
            continue
        array = value.const_value.numpy()
        kept = first.setdefault((f"{array.dtype} {array.shape}", array.tobytes()), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            del graph.initializers[name]
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    return before - len(graph) - len(graph.initializers)
