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
from onnxscript.rewriter.rules import common as rules

from vitcompress.export.passes import Source

_ELEMENTS = 16  # packed codes must stay packed, and scales apart
_ROUNDS = 2
# Those of onnxscript's rules that transformers give work to, in its order. Its `slice_split_rule`
# compares each Slice with every node of the graph: most of an export's time with packed weights.
_RULES = (
    *rules.mul_by_1_rule.commute(),
    *rules.add_0_rule.commute(),
    rules.sub_0_rule,
    rules.div_by_1_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_gemm_rule,
)


def fold(model: ir.Model, source: Source) -> int:
    """No node computes with small constants alone, and all constants are initializers."""
    before = len(model.graph)
    InlinePass()(model)
    for _ in range(_ROUNDS):
        onnxscript.optimizer.fold_constants(
            model, onnx_shape_inference=True, input_size_limit=_ELEMENTS
        )
        onnxscript.rewriter.rewrite(model, _RULES)
    RemoveUnusedNodesPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    LiftSubgraphInitializersToMainGraphPass()(model)
    NameFixPass()(model)
    return before - len(model.graph)
