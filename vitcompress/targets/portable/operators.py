"""What our operators become in ONNX: operators that opset 17 has, and every runtime."""

from typing import Any

import torch
from onnxscript import ir
from onnxscript import opset18 as op

from vitcompress.model.modules import attention, quantized  # noqa: F401  (register operators)
from vitcompress.targets import OperatorTable, _operators
from vitcompress.targets._operators import END, ints, quantized_input, tokens, uint8, whole_weight


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
        at = op.Squeeze(places, ints(-1))
        cos, sin = (op.Gather(table, at, axis=0) for table in (cos, sin))
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


def _quantized_linear(
    x: Any,
    codes: Any,
    scale: Any,
    bias: Any,
    activation_scale: Any,
    activation_zero_point: Any,
    multipliers: Any,
    bits: int,
    group: int,
    terms: int,
    residual_tokens: int | None,
) -> Any:
    """`model.modules.quantized.quantized_linear`."""
    whole = whole_weight(codes, multipliers, bits, group, int(x.shape[-1]))
    x_codes, x_scale, zero_point = quantized_input(x, activation_scale, activation_zero_point)
    held = op.DequantizeLinear(x_codes, x_scale, zero_point)
    output = _product(held, whole, scale)
    if len(x.shape) == 2:
        # onnxruntime would make a Gemm in floats of a product of matrices and the bias next to it.
        output = op.Squeeze(op.Add(op.Unsqueeze(output, ints(0)), bias), ints(0))
    else:
        output = op.Add(output, bias)
    if terms == 1:
        return output
    others = None
    if residual_tokens is not None and residual_tokens < x.shape[-2]:
        x, held = tokens(x, 0, residual_tokens), tokens(held, 0, residual_tokens)
        others = tokens(output, residual_tokens, END)
        output = tokens(output, 0, residual_tokens)
    # Both factors of the second product are negative, as those for onnxruntime are.
    rest_scale = op.Mul(x_scale, op.Constant(value_float=1 / 256))
    rest_codes = op.QuantizeLinear(op.Sub(held, x), rest_scale, uint8(128))
    rest = op.DequantizeLinear(rest_codes, rest_scale, uint8(128))
    output = op.Add(_product(rest, op.Neg(whole), scale), output)
    return output if others is None else op.Concat(output, others, axis=-2)


def _product(x: Any, whole: Any, scale: Any) -> Any:
    """`x` times weights of whole numbers [in, out] by `scale` [out]."""
    weight = op.Cast(whole, to=ir.DataType.INT8)
    return op.MatMul(x, op.DequantizeLinear(weight, scale, axis=1))


TABLE: OperatorTable = {
    **_operators.TABLE,
    torch.ops.vitcompress.attention.default: _attention,
    torch.ops.vitcompress.rotation.default: _rotation,
    torch.ops.vitcompress.quantized_linear.default: _quantized_linear,
    torch.ops.vitcompress.unit.default: _unit,
}
