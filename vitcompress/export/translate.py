"""What our operators become in ONNX: standard operators that onnxruntime fuses.

onnxruntime folds the unpacking of weight codes once, at load, and fuses the rest to one integer
kernel with rescaling and bias: MatMulIntegerToFloat, or DynamicQuantizeMatMul.
"""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import ir
from onnxscript import opset23 as op

from vitcompress.methods import selection  # noqa: F401  (registers operators)
from vitcompress.methods.packing import parts
from vitcompress.model import layers  # noqa: F401  (registers operators)

OPSET = 23


def _attention(q: Any, k: Any, v: Any, heads: int, scale: float, bias: Any = None) -> Any:
    mask = None
    if bias is not None:  # onnxruntime wants a row for every query
        rows = op.Constant(value_ints=[1, 1, int(q.shape[1]), 1])
        mask = op.Expand(op.Unsqueeze(bias, op.Constant(value_ints=[1, 2])), rows)
    # The 3-D form of the operator needs no transposes; its other three outputs are not wanted.
    output, *_ = op.Attention(q, k, v, mask, q_num_heads=heads, kv_num_heads=heads, scale=scale)
    return output


def _descending(scores: Any) -> Any:
    _, order = op.TopK(scores, op.Constant(value_ints=[int(scores.shape[1])]), axis=1)
    return order


def _rows(x: Any, index: Any) -> Any:
    return op.GatherND(x, index, batch_dims=1)


def _one_hot(target: Any, count: int) -> Any:
    values = op.Constant(value_floats=[0.0, 1.0])
    return op.OneHot(target, op.Constant(value_ints=[count]), values, axis=1)


def _unit(x: Any) -> Any:
    return op.LpNormalization(x, axis=-1, p=2)


def _unpacked(codes: Any, bits: int, rows: int) -> Any:
    """Packed uint8 codes → int8 [rows, columns], the inverse of `methods.packing.pack`."""
    total = None
    layout = parts(bits, rows)
    for part in layout:
        held = codes
        if len(layout) > 1:
            bounds = ([part.start], [part.start + part.rows], [0])
            held = op.Slice(codes, *(op.Constant(value_ints=b) for b in bounds))
        slices = [_bits(held, shift, part.bits) for shift in range(0, 8, part.bits)]
        value = op.Concat(*slices, axis=0) if len(slices) > 1 else slices[0]
        if part.rows * len(slices) > rows:
            bounds = ([0], [rows], [0])
            value = op.Slice(value, *(op.Constant(value_ints=b) for b in bounds))
        if part.weight > 1:
            value = op.BitShift(value, _uint8(part.weight.bit_length() - 1), direction="LEFT")
        total = value if total is None else op.BitwiseOr(total, value)
    middle = op.Cast(op.Constant(value_int=1 << (bits - 1)), to=ir.DataType.INT32)
    signed = op.Sub(op.Cast(total, to=ir.DataType.INT32), middle)
    return op.Cast(signed, to=ir.DataType.INT8)


def _bits(held: Any, shift: int, bits: int) -> Any:
    if bits == 8:
        return held
    shifted = op.BitShift(held, _uint8(shift), direction="RIGHT") if shift else held
    return op.BitwiseAnd(shifted, _uint8((1 << bits) - 1))


def _uint8(value: int) -> Any:
    return op.Cast(op.Constant(value_int=value), to=ir.DataType.UINT8)


def _quantized_linear(
    x: Any,
    codes: Any,
    scale: Any,
    bias: Any,
    activation_scale: Any,
    activation_zero_point: Any,
    bits: int,
    terms: int,
) -> Any:
    weight = _unpacked(codes, bits, int(x.shape[-1]))
    if activation_scale is None:
        x_codes, x_scale, zero_point = op.DynamicQuantizeLinear(x)
    else:
        x_scale, zero_point = activation_scale, activation_zero_point
        x_codes = op.QuantizeLinear(x, x_scale, zero_point)
    output = bias
    if terms == 2:
        rest = op.Sub(x, op.DequantizeLinear(x_codes, x_scale, zero_point))
        rest_scale = op.Mul(x_scale, op.Constant(value_float=1 / 256))
        rest_codes = op.QuantizeLinear(rest, rest_scale, _uint8(128))
        output = _integer_matmul(rest_codes, weight, rest_scale, _uint8(128), scale, bias)
    return _integer_matmul(x_codes, weight, x_scale, zero_point, scale, output)


def _integer_matmul(
    x_codes: Any, weight: Any, x_scale: Any, zero_point: Any, scale: Any, addend: Any
) -> Any:
    # The scale once more, as the value of a code 1: onnxruntime never folds DequantizeLinear, so
    # the two scales stay apart, as its fusion of kernel, rescaling and bias needs them.
    x_scale = op.DequantizeLinear(_uint8(1), x_scale)
    sums = op.Cast(op.MatMulInteger(x_codes, weight, zero_point), to=ir.DataType.FLOAT)
    return op.Add(op.Mul(sums, op.Mul(x_scale, scale)), addend)


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.vitcompress.attention.default: _attention,
    torch.ops.vitcompress.quantized_linear.default: _quantized_linear,
    torch.ops.vitcompress.descending.default: _descending,
    torch.ops.vitcompress.rows.default: _rows,
    torch.ops.vitcompress.one_hot.default: _one_hot,
    torch.ops.vitcompress.unit.default: _unit,
}
