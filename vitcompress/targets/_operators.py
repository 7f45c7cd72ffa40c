"""What our operators become in ONNX wherever targets agree: quantized layers, but for their product
of integers, weights unpacked, tokens picked.

Bits are told apart by a table of all 256 bytes: a Gather is exact in every runtime, where shifts of
bits are not.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from onnxscript import ir
from onnxscript import opset18 as op

from vitcompress.methods import selection  # noqa: F401  (registers operators)
from vitcompress.methods.compact import cell_counts
from vitcompress.methods.packing import Part, parts
from vitcompress.methods.quantizer import MULTIPLIER_BITS
from vitcompress.model import compact  # noqa: F401  (registers its operator)
from vitcompress.targets import OperatorTable

END = 2**31 - 1
"""Of a Slice: as far as there is something."""


def ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def uint8(value: int) -> Any:
    return op.Cast(op.Constant(value_int=value), to=ir.DataType.UINT8)


def int32(value: int) -> Any:
    return op.Cast(op.Constant(value_int=value), to=ir.DataType.INT32)


def tokens(x: Any, start: int, stop: int) -> Any:
    """Some of the tokens of `x` [..., tokens, features]."""
    return op.Slice(x, ints(start), ints(stop), ints(-2))


class Codes(NamedTuple):
    """The 8-bit codes uint8 [..., in] of an input, their scale and zero point, and its axes."""

    codes: Any
    scale: Any
    zero_point: Any
    rank: int

    def values(self) -> Any:
        return op.DequantizeLinear(self.codes, self.scale, self.zero_point)


Product = Callable[[Codes, Any, Any, Any], Any]
"""An input, weights int8 [in, out] with their scale [out], and what is added → float32 [..., out],
in operators that a runtime multiplies in integers."""


def two_term_linear(product: Product) -> Callable[..., Any]:
    """`model.modules.quantized.quantized_linear` by the `product` of a target."""

    def written(
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
        levels: Any = None,
    ) -> Any:
        whole = whole_weight(codes, multipliers, bits, group, int(x.shape[-1]), levels)
        first = _coded(x, activation_scale, activation_zero_point)
        output = product(first, op.Cast(whole, to=ir.DataType.INT8), scale, bias)
        if terms == 1:
            return output
        others = None
        if residual_tokens is not None and residual_tokens < x.shape[-2]:
            x = tokens(x, 0, residual_tokens)
            first = first._replace(codes=tokens(first.codes, 0, residual_tokens))
            others = tokens(output, residual_tokens, END)
            output = tokens(output, 0, residual_tokens)
        # Both factors of the second product are negative: onnxruntime cannot load a model with one
        # signed weight in two kernels where it has to make weights unsigned (without VNNI).
        negative = op.Cast(op.Neg(whole), to=ir.DataType.INT8)
        rest = op.Sub(first.values(), x)
        rest_scale = op.Mul(first.scale, op.Constant(value_float=1 / 256))
        rest_codes = op.QuantizeLinear(rest, rest_scale, uint8(128))
        second = Codes(rest_codes, rest_scale, uint8(128), first.rank)
        output = product(second, negative, scale, output)
        return output if others is None else op.Concat(output, others, axis=-2)

    return written


def _unpacked_weight(
    codes: Any,
    scale: Any,
    multipliers: Any,
    bits: int,
    group: int,
    rows: int,
    levels: Any = None,
) -> Any:
    """`model.modules.quantized.unpacked_weight`, in integers until the last: OpenVINO keeps a
    weight of 8 bits that it only has to cast, and casts it at each run."""
    whole = whole_weight(codes, multipliers, bits, group, rows, levels)
    return op.Mul(op.Cast(whole, to=ir.DataType.FLOAT), scale)


def _coded(x: Any, scale: Any, zero_point: Any) -> Codes:
    """`x` in 8 bits; of its own range where none is given."""
    if scale is None:
        codes, scale, zero_point = op.DynamicQuantizeLinear(x)
    else:
        codes = op.QuantizeLinear(x, scale, zero_point)
    return Codes(codes, scale, zero_point, len(x.shape))


def whole_weight(
    codes: Any, multipliers: Any, bits: int, group: int, rows: int, levels: Any = None
) -> Any:
    """`methods.quantizer.whole_weight`, int32 [in, out]."""
    whole = _unpacked(codes, bits, rows, levels)
    return whole if multipliers is None else op.Mul(whole, _spread(multipliers, group, rows))


def _unpacked(codes: Any, bits: int, rows: int, levels: Any = None) -> Any:
    """`methods.quantizer.unpack_levels`, int32 [rows, columns]."""
    if levels is None:
        return op.Sub(_unpacked_codes(codes, 1 << bits, rows), int32(1 << (bits - 1)))
    held = op.Gather(levels, _unpacked_codes(codes, int(levels.shape[0]), rows), axis=0)
    return op.Cast(held, to=ir.DataType.INT32)


def _unpacked_codes(codes: Any, values: int, rows: int) -> Any:
    """`methods.packing.unpack`, int32 [rows, columns]."""
    layout = parts(values, rows)
    total = None
    for part in layout:
        held = codes
        if len(layout) > 1:
            held = op.Slice(codes, ints(part.start), ints(part.start + part.rows), ints(0))
        slices = [_digits(held, unit, part) for unit in part.units]
        value = op.Concat(*slices, axis=0) if len(slices) > 1 else slices[0]
        if part.rows * len(slices) > rows:
            value = op.Slice(value, ints(0), ints(rows), ints(0))
        value = op.Cast(value, to=ir.DataType.INT32)
        total = value if total is None else op.Add(total, value)
    return total


def _digits(held: Any, unit: int, part: Part) -> Any:
    """What the digit that counts `unit` is worth in each byte of `held`."""
    if part.base == 256:
        return held
    table = [byte // unit % part.base * part.weight for byte in range(256)]
    index = op.Cast(held, to=ir.DataType.INT32)
    return op.Gather(op.Constant(value=ir.tensor(np.array(table, "uint8"))), index, axis=0)


def _spread(multipliers: Any, group: int, rows: int) -> Any:
    """Packed multipliers → int32 [rows, columns], each repeated `group` times."""
    groups = -(-rows // group)
    each = op.Unsqueeze(_unpacked(multipliers, MULTIPLIER_BITS, groups), ints(1))
    flat = op.Reshape(op.Expand(each, ints(1, group, 1)), ints(groups * group, -1))
    return flat if groups * group == rows else op.Slice(flat, ints(0), ints(rows), ints(0))


def _descending(scores: Any) -> Any:
    _, order = op.TopK(scores, ints(int(scores.shape[1])), axis=1)
    return order


def _rows(x: Any, index: Any) -> Any:
    if len(x.shape) == 2:
        return op.GatherElements(x, index, axis=1)
    return op.GatherND(x, op.Unsqueeze(index, ints(-1)), batch_dims=1)


def added(x: Any, index: Any, y: Any) -> Any:
    """`methods.selection.added` as a product: not every runtime adds where it scatters."""
    ones = op.OneHot(index, ints(int(x.shape[1])), op.Constant(value_floats=[0.0, 1.0]), axis=1)
    if len(x.shape) == 2:
        return op.Add(x, op.Squeeze(op.MatMul(ones, op.Unsqueeze(y, ints(-1))), ints(-1)))
    return op.Add(x, op.MatMul(ones, y))


def _expanded(
    values: Any,
    mask: Any,
    kept: int,
    bits: int,
    rows: int,
    columns: int,
    cell: Sequence[int],
    levels: Any = None,
) -> Any:
    """`model.compact.expanded_cells`: each cell takes its place in its row, or a zero."""
    (high, wide), (down, across) = cell, cell_counts(rows, columns, (cell[0], cell[1]))
    flat = op.Reshape(_unpacked_codes(mask, 2, down), ints(-1))
    place = op.Mul(op.CumSum(flat, op.Constant(value_int=0)), flat)  # 0 for a cell that is zero
    if bits:
        values = _unpacked(values, bits, kept, levels)
    zero = op.Cast(
        op.Constant(value_float=0.0), to=ir.DataType.INT32 if bits else ir.DataType.FLOAT
    )
    cells = op.Concat(op.Expand(zero, ints(1, high * wide)), values, axis=0)
    matrix = op.Reshape(op.Gather(cells, place, axis=0), ints(down, across, high, wide))
    matrix = op.Transpose(matrix, perm=[0, 2, 1, 3])
    matrix = op.Reshape(matrix, ints(down * high, across * wide))
    if (down * high, across * wide) != (rows, columns):
        matrix = op.Slice(matrix, ints(0, 0), ints(rows, columns), ints(0, 1))
    if bits:
        matrix = op.Cast(op.Add(matrix, int32(128)), to=ir.DataType.UINT8)
    return matrix


TABLE: OperatorTable = {
    torch.ops.vitcompress.descending.default: _descending,
    torch.ops.vitcompress.rows.default: _rows,
    torch.ops.vitcompress.added.default: added,
    torch.ops.vitcompress.expanded.default: _expanded,
    torch.ops.vitcompress.unpacked_weight.default: _unpacked_weight,
}
"""The operators that are written alike for all targets."""
