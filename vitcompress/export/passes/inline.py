"""Functions put in the place of their calls, for runtimes that do not do so themselves."""

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from vitcompress.export.passes import Source
from vitcompress.export.passes.outline import DOMAIN

_CALL = "call"


def inline(model: ir.Model, source: Source) -> int:
    """The file has functions only where the target reads them.

    The nodes of a quantized layer are then called LAYER/NODE.
    """
    if source.target.functions or not model.functions:
        return 0
    calls = [node for node in model.graph if node.op_identifier() in model.functions]
    for call in calls:
        assert call.name is not None
        call.metadata_props[_CALL] = call.name  # which those in its place have as well
    InlinePass()(model)
    del model.opset_imports[DOMAIN]
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in model.graph:
        if (call_name := node.metadata_props.get(_CALL)) is not None:
            node.name = f"{call_name}/{node.name}"
    return len(calls)
