"""What our operators become in ONNX: operators of opset 23 that onnxruntime fuses.

onnxruntime folds the unpacking of weight codes once, at load, and fuses the rest to one integer
kernel with rescaling and bias: MatMulIntegerToFloat, or DynamicQuantizeMatMul.
"""

from typing import Any

import torch
from onnxscript import ir
from onnxscript import opset23 as op

from vitcompress.model.modules import attention, quantized  # noqa: F401  (register operators)
from vitcompress.targets import OperatorTable, _operators
from vitcompress.targets._operators import Codes, added, ints, two_term_linear, uint8


def _attention(q: Any, k: Any, v: Any, heads: int, scale: float, bias: Any = None) -> Any:
    """`model.modules.attention.attend`, its `bias` float32 [B or 1, heads or 1, M or 1, N].

    onnxruntime 1.32 spreads a bias over images and heads itself, be it constant or computed:
    [1, 1, M, N], [1, heads, M, N], [B, 1, M, N] and [B, heads, M, N] are taken as they are. What it
    refuses is one row for several queries ("inconsistent q_sequence_length"): repeated here.
    """
    mask, rows = bias, int(q.shape[1])
    if bias is not None and rows > 1 and bias.shape[2] == 1:
        mask = op.Expand(bias, ints(1, 1, rows, 1))
    # The 3-D form of the operator needs no transposes; its other three outputs are not wanted.
    output, *_ = op.Attention(q, k, v, mask, q_num_heads=heads, kv_num_heads=heads, scale=scale)
    return output


def _rotation(x: Any, cos: Any, sin: Any, places: Any = None) -> Any:
    if places is None:
        count = int(x.shape[1])
        shape = op.Concat(op.Shape(x, start=0, end=1), ints(count), axis=0)
        places = op.Expand(ints(*range(count)), shape)
    # As one head: in neighbouring pairs, each of any head has its own column of the tables.
    return op.RotaryEmbedding(x, cos, sin, places, interleaved=1, num_heads=1)


def _unit(x: Any) -> Any:
    """`methods.selection.unit`: a root of a mean of squares is the length over that of the width.

    1.24 has no kernel for the LpNormalization of opset 22.
    """
    width = int(x.shape[-1])
    scale = op.Constant(value_floats=[width**-0.5] * width)
    return op.RMSNormalization(x, scale, axis=-1, epsilon=torch.finfo(torch.float32).tiny)


def _added(x: Any, index: Any, y: Any) -> Any:
    # Not of rows: ScatterND adds them in several threads that do not wait for each other.
    if len(x.shape) == 2:
        return op.ScatterElements(x, index, y, axis=1, reduction="add")
    return added(x, index, y)


def _product(x: Codes, weight: Any, scale: Any, addend: Any) -> Any:
    # The scale once more, as the value of a code 1: onnxruntime never folds DequantizeLinear, so
    # the two scales stay apart, as its fusion of kernel, rescaling and bias needs them.
    x_scale = op.DequantizeLinear(uint8(1), x.scale)
    sums = op.Cast(op.MatMulInteger(x.codes, weight, x.zero_point), to=ir.DataType.FLOAT)
    return op.Add(op.Mul(sums, op.Mul(x_scale, scale)), addend)


TABLE: OperatorTable = {
    **_operators.TABLE,
    torch.ops.vitcompress.attention.default: _attention,
    torch.ops.vitcompress.rotation.default: _rotation,
    torch.ops.vitcompress.quantized_linear.default: two_term_linear(_product),
    torch.ops.vitcompress.unit.default: _unit,
    torch.ops.vitcompress.added.default: _added,
}
