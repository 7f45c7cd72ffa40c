"""Codebooks: the levels that weights of few bits are rounded to, times a step. One file each, found
by its name, with the object `CODEBOOK`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from vitcompress import registry
from vitcompress.methods.quantizer import Levels

PACKAGE = __name__

Fitted = Callable[[Tensor, Tensor, Levels, int | None], Levels]
"""(weight [out, in], mean squares of inputs [in], levels to start from, how many inputs share a
multiplier or None) → levels, as many and as large."""


@dataclass(frozen=True)
class Codebook:
    """`widths`: the bits that it has levels for. `levels`: those of a width; where they are
    `fitted` to the weights of each layer, those to start from."""

    widths: tuple[int, ...]
    levels: Callable[[int], Levels]
    fitted: Fitted | None = None


def codebook_of(name: str) -> Codebook:
    return cast(Codebook, registry.load_module(PACKAGE, name).CODEBOOK)


def of_width(name: str, bits: int) -> Codebook:
    """The codebook `name` where it has so many `bits`; else the even levels, which are of all."""
    found = codebook_of(name)
    return found if bits in found.widths else codebook_of("uniform")
