"""What our operators become in ONNX: operators that opset 17 has, and every runtime."""

from typing import Any

import torch
from onnxscript import opset18 as op

from vitcompress.model.modules import attention, quantized  # noqa: F401  (register operators)
from vitcompress.targets import OperatorTable, _operators
from vitcompress.targets._operators import Codes, ints, two_term_linear


def _attention(q: Any, k: Any, v: Any, heads: int, scale: float, bias: Any = None) -> Any:
    """`model.modules.attention.attend`."""
    queries = op.Mul(_by_head(q, heads, [0, 2, 1, 3]), op.Constant(value_float=scale))
    logits = op.MatMul(queries, _by_head(k, heads, [0, 2, 3, 1]))
    if bias is not None:
        logits = op.Add(logits, bias)
    mixed = op.MatMul(op.Softmax(logits, axis=-1), _by_head(v, heads, [0, 2, 1, 3]))
    return op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), ints(0, 0, int(v.shape[2])))


def _by_head(x: Any, heads: int, order: list[int]) -> Any:
    """[B, N, h·d] → [B, N, h, d], its axes in `order`."""
    return op.Transpose(op.Reshape(x, ints(0, 0, heads, int(x.shape[2]) // heads)), perm=order)


def _rotation(x: Any, cos: Any, sin: Any, places: Any = None) -> Any:
    """`model.modules.rotation.rotated`."""
    if places is None:
        start, count = ints(0), ints(int(x.shape[1]))
        cos, sin = (op.Slice(table, start, count, ints(0)) for table in (cos, sin))
    else:
        cos, sin = (op.Gather(table, places, axis=0) for table in (cos, sin))
    pairs = op.Reshape(x, ints(0, 0, int(x.shape[2]) // 2, 2))
    one, other = (
        op.Squeeze(op.Slice(pairs, ints(n), ints(n + 1), ints(-1)), ints(-1)) for n in (0, 1)
    )
    turned = (
        op.Sub(op.Mul(one, cos), op.Mul(other, sin)),
        op.Add(op.Mul(other, cos), op.Mul(one, sin)),
    )
    both = op.Concat(*(op.Unsqueeze(half, ints(-1)) for half in turned), axis=-1)
    return op.Reshape(both, ints(0, 0, int(x.shape[2])))


def _unit(x: Any) -> Any:
    """`methods.selection.unit`."""
    length = op.Sqrt(op.ReduceSum(op.Mul(x, x), ints(-1), keepdims=1))
    smallest = op.Constant(value_float=torch.finfo(torch.float32).tiny)
    return op.Div(x, op.Max(length, smallest))


def _product(x: Codes, weight: Any, scale: Any, addend: Any) -> Any:
    output = op.MatMul(x.values(), op.DequantizeLinear(weight, scale, axis=1))
    if x.rank > 2:
        return op.Add(output, addend)
    # onnxruntime would make a Gemm in floats of a product of matrices and what is added next to it.
    return op.Squeeze(op.Add(op.Unsqueeze(output, ints(0)), addend), ints(0))


TABLE: OperatorTable = {
    **_operators.TABLE,
    torch.ops.vitcompress.attention.default: _attention,
    torch.ops.vitcompress.rotation.default: _rotation,
    torch.ops.vitcompress.quantized_linear.default: two_term_linear(_product),
    torch.ops.vitcompress.unit.default: _unit,
}
