"""What our operators become in ONNX: operators of opset 23 that onnxruntime fuses.

onnxruntime folds the unpacking of weight codes once, at load, and fuses the rest to one integer
kernel with rescaling and bias: MatMulIntegerToFloat, or DynamicQuantizeMatMul.
"""

from collections.abc import Sequence
from typing import Any

import torch
from onnxscript import ir
from onnxscript import opset23 as op

from vitcompress.methods import selection  # noqa: F401  (registers operators)
from vitcompress.methods.compact import cell_counts
from vitcompress.methods.packing import parts
from vitcompress.methods.quantizer import MULTIPLIER_BITS
from vitcompress.model import compact  # noqa: F401  (registers its operator)
from vitcompress.model.modules import attention, quantized  # noqa: F401  (register operators)
from vitcompress.targets import OperatorTable

_END = 2**31 - 1  # of a Slice: as far as there is something


def _attention(q: Any, k: Any, v: Any, heads: int, scale: float, bias: Any = None) -> Any:
    """`model.modules.attention.attend`, its `bias` float32 [B or 1, heads or 1, M or 1, N].

    onnxruntime 1.32 spreads a bias over images and heads itself, be it constant or computed:
    [1, 1, M, N], [1, heads, M, N], [B, 1, M, N] and [B, heads, M, N] are taken as they are. What it
    refuses is one row for several queries ("inconsistent q_sequence_length"): repeated here.
    """
    mask, rows = bias, int(q.shape[1])
    if bias is not None and rows > 1 and bias.shape[2] == 1:
        mask = op.Expand(bias, _ints(1, 1, rows, 1))
    # The 3-D form of the operator needs no transposes; its other three outputs are not wanted.
    output, *_ = op.Attention(q, k, v, mask, q_num_heads=heads, kv_num_heads=heads, scale=scale)
    return output


def _rotation(x: Any, cos: Any, sin: Any, places: Any = None) -> Any:
    if places is None:
        count = int(x.shape[1])
        shape = op.Concat(op.Shape(x, start=0, end=1), _ints(count), axis=0)
        at = op.Expand(_ints(*range(count)), shape)
    else:
        at = op.Squeeze(places, _ints(-1))
    # As one head: in neighbouring pairs, each of any head has its own column of the tables.
    return op.RotaryEmbedding(x, cos, sin, at, interleaved=1, num_heads=1)


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
    """Packed uint8 codes → signed int32 [rows, columns], as `methods.quantizer` unpacks them."""
    middle = op.Cast(op.Constant(value_int=1 << (bits - 1)), to=ir.DataType.INT32)
    return op.Sub(op.Cast(_unpacked_bits(codes, bits, rows), to=ir.DataType.INT32), middle)


def _unpacked_bits(codes: Any, bits: int, rows: int) -> Any:
    """Packed uint8 codes → unsigned uint8 [rows, columns], as `methods.packing` unpacks them."""
    total = None
    layout = parts(bits, rows)
    for part in layout:
        held = codes
        if len(layout) > 1:
            held = op.Slice(codes, _ints(part.start), _ints(part.start + part.rows), _ints(0))
        slices = [_bits(held, shift, part.bits) for shift in range(0, 8, part.bits)]
        value = op.Concat(*slices, axis=0) if len(slices) > 1 else slices[0]
        if part.rows * len(slices) > rows:
            value = op.Slice(value, _ints(0), _ints(rows), _ints(0))
        if part.weight > 1:
            value = op.BitShift(value, _uint8(part.weight.bit_length() - 1), direction="LEFT")
        total = value if total is None else op.BitwiseOr(total, value)
    return total


def _spread(multipliers: Any, group: int, rows: int) -> Any:
    """Packed multipliers → int32 [rows, columns], each repeated `group` times."""
    groups = -(-rows // group)
    each = op.Unsqueeze(_unpacked(multipliers, MULTIPLIER_BITS, groups), _ints(1))
    flat = op.Reshape(op.Expand(each, _ints(1, group, 1)), _ints(groups * group, -1))
    return flat if groups * group == rows else op.Slice(flat, _ints(0), _ints(rows), _ints(0))


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


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
    multipliers: Any,
    bits: int,
    group: int,
    terms: int,
    residual_tokens: int | None,
) -> Any:
    rows = int(x.shape[-1])
    whole = _unpacked(codes, bits, rows)
    if multipliers is not None:
        whole = op.Mul(whole, _spread(multipliers, group, rows))
    weight = op.Cast(whole, to=ir.DataType.INT8)
    if activation_scale is None:
        x_codes, x_scale, zero_point = op.DynamicQuantizeLinear(x)
    else:
        x_scale, zero_point = activation_scale, activation_zero_point
        x_codes = op.QuantizeLinear(x, x_scale, zero_point)
    output = _integer_matmul(x_codes, weight, x_scale, zero_point, scale, bias)
    if terms == 1:
        return output
    others = None
    if residual_tokens is not None and residual_tokens < x.shape[-2]:
        x, x_codes = _tokens(x, 0, residual_tokens), _tokens(x_codes, 0, residual_tokens)
        others = _tokens(output, residual_tokens, _END)
        output = _tokens(output, 0, residual_tokens)
    # Both factors of the second product are negative: onnxruntime cannot load a model with one
    # signed weight in two kernels where it has to make weights unsigned (processors without VNNI).
    negative = op.Cast(op.Neg(whole), to=ir.DataType.INT8)
    rest = op.Sub(op.DequantizeLinear(x_codes, x_scale, zero_point), x)
    rest_scale = op.Mul(x_scale, op.Constant(value_float=1 / 256))
    rest_codes = op.QuantizeLinear(rest, rest_scale, _uint8(128))
    output = _integer_matmul(rest_codes, negative, rest_scale, _uint8(128), scale, output)
    return output if others is None else op.Concat(output, others, axis=-2)


def _tokens(x: Any, start: int, stop: int) -> Any:
    return op.Slice(x, *(op.Constant(value_ints=[bound]) for bound in (start, stop, -2)))


def _integer_matmul(
    x_codes: Any, weight: Any, x_scale: Any, zero_point: Any, scale: Any, addend: Any
) -> Any:
    # The scale once more, as the value of a code 1: onnxruntime never folds DequantizeLinear, so
    # the two scales stay apart, as its fusion of kernel, rescaling and bias needs them.
    x_scale = op.DequantizeLinear(_uint8(1), x_scale)
    sums = op.Cast(op.MatMulInteger(x_codes, weight, zero_point), to=ir.DataType.FLOAT)
    return op.Add(op.Mul(sums, op.Mul(x_scale, scale)), addend)


def _expanded(
    values: Any, mask: Any, kept: int, bits: int, rows: int, columns: int, cell: Sequence[int]
) -> Any:
    """`model.compact.expanded_cells`: each cell takes its place in its row, or a zero."""
    (high, wide), (down, across) = cell, cell_counts(rows, columns, (cell[0], cell[1]))
    present = op.Cast(_unpacked_bits(mask, 1, down), to=ir.DataType.INT32)
    flat = op.Reshape(present, _ints(-1))
    place = op.Mul(op.CumSum(flat, op.Constant(value_int=0)), flat)  # 0 for a cell that is zero
    if bits:
        values = _unpacked(values, bits, kept)
    zero = op.Cast(
        op.Constant(value_float=0.0), to=ir.DataType.INT32 if bits else ir.DataType.FLOAT
    )
    cells = op.Concat(op.Expand(zero, _ints(1, high * wide)), values, axis=0)
    matrix = op.Reshape(op.Gather(cells, place, axis=0), _ints(down, across, high, wide))
    matrix = op.Transpose(matrix, perm=[0, 2, 1, 3])
    matrix = op.Reshape(matrix, _ints(down * high, across * wide))
    if (down * high, across * wide) != (rows, columns):
        matrix = op.Slice(matrix, _ints(0, 0), _ints(rows, columns), _ints(0, 1))
    if bits:
        middle = op.Cast(op.Constant(value_int=128), to=ir.DataType.INT32)
        matrix = op.Cast(op.Add(matrix, middle), to=ir.DataType.UINT8)
    return matrix


TABLE: OperatorTable = {
    torch.ops.vitcompress.attention.default: _attention,
    torch.ops.vitcompress.rotation.default: _rotation,
    torch.ops.vitcompress.quantized_linear.default: _quantized_linear,
    torch.ops.vitcompress.descending.default: _descending,
    torch.ops.vitcompress.rows.default: _rows,
    torch.ops.vitcompress.one_hot.default: _one_hot,
    torch.ops.vitcompress.unit.default: _unit,
    torch.ops.vitcompress.expanded.default: _expanded,
}
