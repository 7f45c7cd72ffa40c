"""Which products of a file OpenVINO computes in 8 bits."""

from collections.abc import Collection
from pathlib import Path

import onnx


def products(path: Path, integer_nodes: Collection[str], scales: Collection[str]) -> dict[str, int]:
    """`Target.kernels`, by the nodes of the file at `path` that became kernels of 8 bits."""
    graph = onnx.load(path, load_external_data=False).graph
    made_by = {value: node for node in graph.node for value in node.output}
    names, found = frozenset(integer_nodes), dict.fromkeys(scales, 0)
    for node in graph.node:
        weight = made_by.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and weight.op_type == "DequantizeLinear":
            scale = weight.input[1]
            if scale in found and node.name in names:
                found[scale] += 1
    return found
