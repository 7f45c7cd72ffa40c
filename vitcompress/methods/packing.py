"""Packing: codes of a few values in uint8 tensors, in a layout that few standard operators unpack.

Codes of 2^b values are split into parts of 8, 4, 2 or 1 bits (6 = 4 + 2, 3 = 2 + 1), each of which
is one digit, to the base 256, 16, 4 or 2; codes of three values are one digit to the base 3. A byte
holds as many digits as it can. A part with n digits to a byte of a [rows, columns] matrix becomes
m = ceil(rows / n) packed rows: packed row i holds, from the lowest digit up, the rows i, i + m,
i + 2m, …, so that unpacking is a division and a remainder (or a table) for each slice and one
concatenation. Parts lie one below the other, widest first.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_DIGITS = {256: 1, 16: 2, 4: 4, 2: 8, 3: 5}
"""By base, how many digits a byte holds."""


class Part(NamedTuple):
    """A digit of every code, worth `weight`, in the packed rows `start` to `start + rows`."""

    base: int
    weight: int
    start: int
    rows: int

    @property
    def units(self) -> list[int]:
        """What each digit of a byte counts in it, the lowest first."""
        return [self.base**place for place in range(_DIGITS[self.base])]


def parts(values: int, rows: int) -> list[Part]:
    """The parts that hold `rows` codes of so many `values` (3, or a power of two up to 256)."""
    if values != 3 and values not in (1 << bits for bits in range(1, 9)):
        raise ValueError(f"codes have 3 values or a power of two up to 256, not {values}")
    found, start, left = [], 0, values
    for base in (3,) if values == 3 else (256, 16, 4, 2):
        if base <= left:
            left //= base
            packed = -(-rows // _DIGITS[base])
            found.append(Part(base, left, start, packed))
            start += packed
    return found


def pack(codes: Tensor, values: int) -> Tensor:
    """Pack codes below `values`, uint8 [rows, columns], into uint8 [packed rows, columns]."""
    if int(codes.max()) >= values:
        raise ValueError(f"a code is none of {values} values")
    rows, columns = codes.shape
    packed = []
    for part in parts(values, rows):
        digits = codes.to(torch.int32) // part.weight % part.base
        padded = digits.new_zeros(len(part.units) * part.rows, columns)
        padded[:rows] = digits
        units = torch.tensor(part.units, dtype=torch.int32, device=codes.device).view(-1, 1, 1)
        slices = padded.view(len(part.units), part.rows, columns)
        packed.append((slices * units).sum(0).to(torch.uint8))
    return torch.cat(packed)


def unpack(packed: Tensor, values: int, rows: int) -> Tensor:
    """The inverse of `pack`: uint8 codes [rows, columns]."""
    codes = torch.zeros(rows, packed.shape[1], dtype=torch.uint8, device=packed.device)
    for part in parts(values, rows):
        held = packed[part.start : part.start + part.rows]
        slices = [held // unit % part.base if part.base < 256 else held for unit in part.units]
        codes += torch.cat(slices)[:rows] * part.weight
    return codes
