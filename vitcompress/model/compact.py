"""Layers with many zeros, as they are stored and exported: their other weights, and where they lie.

In memory such a layer is an ordinary Linear, or a QuantizedLinear, with zeros among its weights or
codes. What is written is laid out as a matrix product reads it, [in, out].
"""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.memory import copied
from vitcompress.methods import compact, packing, patterns, quantizer
from vitcompress.model.modules.quantized import (
    QuantizedLinear,
    quantized_linear,
    unpacked_weight,
)

Layers = Mapping[str, str]
"""By name, the patterns of zeros of layers, as `methods.patterns.parse_pattern` reads them."""

_MIDDLE = 128  # code 0 among unsigned 8-bit codes


def packed(module: nn.Module, layers: Layers) -> dict[str, Tensor]:
    """The state of `module`; of `layers` only the cells that are not all zero, and of n:m patterns
    n of m, whether codes among them are zero or not.

    In the place of a `weight` come `values` [kept, cell] and `mask`; in that of `codes` come the
    `codes` of these cells, packed, and `mask`.
    """
    state = dict(module.state_dict())
    for name, pattern in layers.items():
        layer = module.get_submodule(name)
        if isinstance(layer, QuantizedLinear):
            number, zero = quantizer.count(layer.levels), quantizer.zero_code(layer.levels)
            whole = packing.unpack(layer.codes, number, layer.in_features).to(torch.int16) - zero
            values, mask = _compacted(whole, pattern)
            codes = (values + zero).to(torch.uint8)
            state[f"{name}.codes"] = packing.pack(codes, number) if len(codes) else codes
        else:
            weight = cast(Tensor, state.pop(f"{name}.weight"))
            values, mask = _compacted(weight.T, pattern)
            state[f"{name}.values"] = values
        state[f"{name}.mask"] = mask
    return state


def unpacked(module: nn.Module, layers: Layers, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `packed`: a state that `module` loads. A key that misses stays missing."""
    state = dict(state)
    for name, pattern in layers.items():
        layer, cell = module.get_submodule(name), _cell(pattern)
        held = "codes" if isinstance(layer, QuantizedLinear) else "values"
        if f"{name}.mask" not in state or f"{name}.{held}" not in state:
            continue  # loading will say so
        mask, values = state.pop(f"{name}.mask"), state.pop(f"{name}.{held}")
        rows, columns = cast(int, layer.in_features), cast(int, layer.out_features)
        left = int(compact.present(mask, rows, columns, cell).sum())
        if isinstance(layer, QuantizedLinear):
            levels = layer.bits if layer.table is None else state.get(f"{name}.table", layer.table)
            number, zero = quantizer.count(levels), quantizer.zero_code(levels)
            codes = packing.unpack(values, number, left).to(torch.int16) - zero
            matrix = compact.expanded(codes, mask, rows, columns, cell) + zero
            state[f"{name}.codes"] = packing.pack(matrix.to(torch.uint8), number)
        else:
            matrix = compact.expanded(values, mask, rows, columns, cell)
            state[f"{name}.weight"] = matrix.T.contiguous()
    return state


def _cell(pattern: str) -> compact.Cell:
    """The cells of `pattern` in a matrix that is laid out [in, out]."""
    high, wide = patterns.parse_pattern(pattern).cell
    return wide, high


def _compacted(matrix: Tensor, pattern: str) -> tuple[Tensor, Tensor]:
    """What `methods.compact.compacted` makes of `matrix` [in, out]."""
    read = patterns.parse_pattern(pattern)
    return compact.compacted(matrix, _cell(pattern), read.kept, read.group)


@torch.library.custom_op("vitcompress::expanded", mutates_args=())
def expanded_cells(
    values: Tensor,
    mask: Tensor,
    kept: int,
    bits: int,
    rows: int,
    columns: int,
    cell: list[int],
    levels: Tensor | None = None,
) -> Tensor:
    """The matrix [rows, columns] of which `values` are the cells that are not all zero.

    With `bits`, `values` are packed codes of so many bits, that stand for `levels` (None: for even
    ones), and the matrix holds unsigned 8-bit codes in which 128 is zero; without (0), all is
    float32.
    """
    high, wide = cell
    if not bits:
        return compact.expanded(values, mask, rows, columns, (high, wide)).contiguous()
    whole = quantizer.unpack_levels(values, bits if levels is None else levels, kept)
    matrix = compact.expanded(whole, mask, rows, columns, (high, wide))
    return (matrix + _MIDDLE).to(torch.uint8)


@expanded_cells.register_fake
def _(
    values: Tensor,
    mask: Tensor,
    kept: int,
    bits: int,
    rows: int,
    columns: int,
    cell: list[int],
    levels: Tensor | None = None,
) -> Tensor:
    return values.new_empty(rows, columns, dtype=torch.uint8 if bits else torch.float32)


class CompactLinear(nn.Module):
    """A Linear for export: its weight comes from `values` and `mask` each time."""

    values: Tensor
    mask: Tensor

    def __init__(self, linear: nn.Linear, pattern: str) -> None:
        super().__init__()
        self.shape, self.cell = (linear.in_features, linear.out_features), list(_cell(pattern))
        values, mask = _compacted(linear.weight.detach().T, pattern)
        self.register_buffer("values", values)
        self.register_buffer("mask", mask)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = expanded_cells(self.values, self.mask, len(self.values), 0, *self.shape, self.cell)
        return F.linear(x, cast(Tensor, weight).T, self.bias)


class CompactQuantizedLinear(nn.Module):
    """A QuantizedLinear for export: its codes come from those of the cells left, and `mask`."""

    mask: Tensor

    def __init__(self, layer: QuantizedLinear, pattern: str) -> None:
        super().__init__()
        self.shape, self.cell = (layer.in_features, layer.out_features), list(_cell(pattern))
        self.bits, self.group, self.terms = layer.bits, layer.group, layer.terms
        self.residual_tokens, self.activations = layer.residual_tokens, layer.activations
        for name, tensor in packed(nn.ModuleDict({"layer": layer}), {"layer": pattern}).items():
            self.register_buffer(name.removeprefix("layer."), tensor)
        for name in ("activation_scale", "activation_zero_point", "multipliers", "table"):
            if not hasattr(self, name):
                self.register_buffer(name, None)
        self.kept = int(compact.present(self.mask, *self.shape, _cell(pattern)).sum())

    def forward(self, x: Tensor) -> Tensor:
        cells = self.codes, self.mask, self.kept, self.bits
        codes = expanded_cells(*cells, *self.shape, self.cell, self.table)
        if self.activations == "float":
            held = codes, self.scale, self.multipliers
            weight = unpacked_weight(*held, 8, self.group or 0, self.shape[0])
            return cast(Tensor, x @ weight + self.bias)
        output = quantized_linear(
            x,
            codes,
            self.scale,
            self.bias,
            self.activation_scale,
            self.activation_zero_point,
            self.multipliers,
            8,
            self.group or 0,
            self.terms,
            self.residual_tokens,
        )
        return cast(Tensor, output)


def exportable(module: nn.Module, layers: Layers) -> nn.Module:
    """`module`, in a copy whose `layers` hold only what is stored of them."""
    if not layers:
        return module
    module = copied(module)
    for name, pattern in layers.items():
        layer = module.get_submodule(name)
        if isinstance(layer, QuantizedLinear):
            module.set_submodule(name, CompactQuantizedLinear(layer, pattern))
        else:
            module.set_submodule(name, CompactLinear(cast(nn.Linear, layer), pattern))
    return module
