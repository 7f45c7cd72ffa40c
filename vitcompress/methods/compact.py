"""Matrices with many zero cells, stored as the cells that are left and one bit for every cell.

The bits of a matrix [rows, columns], cut into cells [high, wide], are packed as codes of one bit
(`methods.packing`) with a row for each row of cells. The cells left follow one another row by row,
each flattened: [kept, high · wide]. Edges are padded with zeros to whole cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import pack, unpack

Cell = tuple[int, int]


def cell_counts(rows: int, columns: int, cell: Cell) -> tuple[int, int]:
    """How many cells lie one below the other, and how many side by side."""
    return -(-rows // cell[0]), -(-columns // cell[1])


def compacted(matrix: Tensor, cell: Cell, kept: int = 0, group: int = 0) -> tuple[Tensor, Tensor]:
    """The cells of `matrix` [rows, columns] that are not all zero, and the packed bits of all.

    With `group`, at least `kept` of each so many cells one below the other: where fewer are not
    zero, the first zeros make up the number, so that n:m patterns have n of m in every group.

    Returns values [kept, high · wide] of the same type, and uint8 [packed rows, cells across].
    """
    (high, wide), (down, across) = cell, cell_counts(matrix.shape[0], matrix.shape[1], cell)
    padded = F.pad(matrix, (0, across * wide - matrix.shape[1], 0, down * high - matrix.shape[0]))
    cells = padded.view(down, high, across, wide).transpose(1, 2).reshape(-1, high * wide)
    left = (cells != 0).any(1).view(down, across)
    if group:
        grouped = left.view(-1, group, across)
        first = grouped.byte().argsort(dim=1, descending=True, stable=True)[:, :kept]
        left = grouped.scatter(1, first, True).view(down, across)
    return cells[left.flatten()], pack(left.to(torch.uint8), 2)


def present(mask: Tensor, rows: int, columns: int, cell: Cell) -> Tensor:
    """Which cells are left, bool [cells down, cells across], from their packed bits."""
    return unpack(mask, 2, cell_counts(rows, columns, cell)[0]).bool()


def expanded(values: Tensor, mask: Tensor, rows: int, columns: int, cell: Cell) -> Tensor:
    """The inverse of `compacted`: the matrix [rows, columns]."""
    (high, wide), (down, across) = cell, cell_counts(rows, columns, cell)
    cells = values.new_zeros(down * across, high * wide)
    cells[present(mask, rows, columns, cell).flatten()] = values
    matrix = cells.view(down, across, high, wide).transpose(1, 2).reshape(down * high, -1)
    return matrix[:rows, :columns]
