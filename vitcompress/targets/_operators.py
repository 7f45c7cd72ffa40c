"""What our operators become in ONNX wherever targets agree: weights unpacked, tokens picked.

Bits are told apart by a table of all 256 bytes: a Gather is exact in every runtime, where shifts of
bits are not.
"""

from collections.abc import Sequence
from typing import Any

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


def quantized_input(x: Any, scale: Any, zero_point: Any) -> tuple[Any, Any, Any]:
    """The 8-bit codes of `x`, with their scale and zero point; of its own range where none is
    given."""
    if scale is None:
        codes, scale, zero_point = op.DynamicQuantizeLinear(x)
        return codes, scale, zero_point
    return op.QuantizeLinear(x, scale, zero_point), scale, zero_point


def whole_weight(codes: Any, multipliers: Any, bits: int, group: int, rows: int) -> Any:
    """`methods.quantizer.whole_weight`, int32 [in, out]."""
    whole = _unpacked(codes, bits, rows)
    return whole if multipliers is None else op.Mul(whole, _spread(multipliers, group, rows))


def _unpacked(codes: Any, bits: int, rows: int) -> Any:
    """Packed uint8 codes → signed int32 [rows, columns], as `methods.quantizer` unpacks them."""
    return op.Sub(_unpacked_bits(codes, bits, rows), int32(1 << (bits - 1)))


def _unpacked_bits(codes: Any, bits: int, rows: int) -> Any:
    """Packed uint8 codes → unsigned int32 [rows, columns], as `methods.packing` unpacks them."""
    layout = parts(bits, rows)
    total = None
    for part in layout:
        held = codes
        if len(layout) > 1:
            held = op.Slice(codes, ints(part.start), ints(part.start + part.rows), ints(0))
        slices = [_bits(held, shift, part) for shift in range(0, 8, part.bits)]
        value = op.Concat(*slices, axis=0) if len(slices) > 1 else slices[0]
        if part.rows * len(slices) > rows:
            value = op.Slice(value, ints(0), ints(rows), ints(0))
        value = op.Cast(value, to=ir.DataType.INT32)
        total = value if total is None else op.Add(total, value)
    return total


def _bits(held: Any, shift: int, part: Part) -> Any:
    """What the bits from `shift` on are worth in each byte of `held`."""
    if part.bits == 8:
        return held
    mask = (1 << part.bits) - 1
    table = [(byte >> shift & mask) * part.weight for byte in range(256)]
    index = op.Cast(held, to=ir.DataType.INT32)
    return op.Gather(op.Constant(value=ir.tensor(np.array(table, "uint8"))), index, axis=0)


def _spread(multipliers: Any, group: int, rows: int) -> Any:
    """Packed multipliers → int32 [rows, columns], each repeated `group` times."""
    groups = -(-rows // group)
    each = op.Unsqueeze(_unpacked(multipliers, MULTIPLIER_BITS, groups), ints(1))
    flat = op.Reshape(op.Expand(each, ints(1, group, 1)), ints(groups * group, -1))
    return flat if groups * group == rows else op.Slice(flat, ints(0), ints(rows), ints(0))


def _descending(scores: Any) -> Any:
    _, order = op.TopK(scores, op.Constant(value_ints=[int(scores.shape[1])]), axis=1)
    return order


def _rows(x: Any, index: Any) -> Any:
    return op.GatherND(x, index, batch_dims=1)


def _one_hot(target: Any, count: int) -> Any:
    values = op.Constant(value_floats=[0.0, 1.0])
    return op.OneHot(target, op.Constant(value_ints=[count]), values, axis=1)


def _expanded(
    values: Any, mask: Any, kept: int, bits: int, rows: int, columns: int, cell: Sequence[int]
) -> Any:
    """`model.compact.expanded_cells`: each cell takes its place in its row, or a zero."""
    (high, wide), (down, across) = cell, cell_counts(rows, columns, (cell[0], cell[1]))
    flat = op.Reshape(_unpacked_bits(mask, 1, down), ints(-1))
    place = op.Mul(op.CumSum(flat, op.Constant(value_int=0)), flat)  # 0 for a cell that is zero
    if bits:
        values = _unpacked(values, bits, kept)
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
    torch.ops.vitcompress.one_hot.default: _one_hot,
    torch.ops.vitcompress.expanded.default: _expanded,
}
"""The operators that are written alike for all targets."""
