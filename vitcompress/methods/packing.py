"""Bit packing: b-bit codes in uint8 tensors, in a layout that few standard operators unpack.

A width is split into parts of 8, 4, 2 or 1 bits (6 = 4 + 2, 3 = 2 + 1). A part of p bits of a
[rows, columns] matrix becomes ceil(rows · p / 8) packed rows: packed row i holds, from the low bits
up, the rows i, i + n, i + 2n, … where n is the number of packed rows, so that unpacking is a shift
and a mask for each slice and one concatenation. Parts lie one below the other, widest first.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """`bits` bits of every code, worth `weight`, in the packed rows `start` to `start + rows`."""

    bits: int
    weight: int
    start: int
    rows: int


def parts(bits: int, rows: int) -> list[Part]:
    """The parts that hold `rows` codes of `bits` bits (1 to 8)."""
    if not 1 <= bits <= 8:
        raise ValueError(f"codes have 1 to 8 bits, not {bits}")
    found, start, left = [], 0, bits
    for width in (8, 4, 2, 1):
        if width <= left:
            left -= width
            packed = -(-rows * width // 8)
            found.append(Part(width, 1 << left, start, packed))
            start += packed
    return found


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes below 2^bits, uint8 [rows, columns], into uint8 [packed rows, columns]."""
    if int(codes.max()) >= 1 << bits:
        raise ValueError(f"a code does not fit in {bits} bits")
    rows, columns = codes.shape
    packed = []
    for part in parts(bits, rows):
        value = codes.to(torch.int32) // part.weight % (1 << part.bits)
        slices = 8 // part.bits
        padded = value.new_zeros(slices * part.rows, columns)
        padded[:rows] = value
        shifts = torch.arange(slices, device=codes.device).view(-1, 1, 1) * part.bits
        packed.append((padded.view(slices, part.rows, columns) << shifts).sum(0).to(torch.uint8))
    return torch.cat(packed)


def unpack(packed: Tensor, bits: int, rows: int) -> Tensor:
    """The inverse of `pack`: uint8 codes [rows, columns]."""
    codes = torch.zeros(rows, packed.shape[1], dtype=torch.uint8, device=packed.device)
    for part in parts(bits, rows):
        held = packed[part.start : part.start + part.rows]
        mask = (1 << part.bits) - 1
        slices = [(held >> shift) & mask for shift in range(0, 8, part.bits)]
        codes += torch.cat(slices)[:rows] * part.weight
    return codes
