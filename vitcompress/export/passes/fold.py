"""Nodes that need no image are computed."""

import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    RemoveUnusedNodesPass,
)

from vitcompress.export.passes import Source

_ELEMENTS = 16  # packed codes must stay packed, and scales apart
_ROUNDS = 2


def fold(model: ir.Model, source: Source) -> int:
    """No node computes with small constants alone, and all constants are initializers."""
    before = len(model.graph)
    InlinePass()(model)
    for _ in range(_ROUNDS):
        onnxscript.optimizer.fold_constants(
            model, onnx_shape_inference=True, input_size_limit=_ELEMENTS
        )
        onnxscript.rewriter.rewrite(model)
    RemoveUnusedNodesPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    LiftSubgraphInitializersToMainGraphPass()(model)
    NameFixPass()(model)
    return before - len(model.graph)
