"""Rounding: which codes stand for the weights of a layer. One file a method, found by its name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from torch import Tensor

from vitcompress import registry
from vitcompress.methods import codebooks, quantizer
from vitcompress.methods.quantizer import Levels

PACKAGE = __name__


@dataclass(frozen=True)
class Lattice:
    """The values that weights [out, in] may have: `levels` times a step.

    `scale` [out]; `multipliers` int8 [groups, out], one for each `group` of inputs, or None.
    """

    scale: Tensor
    multipliers: Tensor | None
    group: int | None
    levels: Levels
    inputs: int

    @classmethod
    def of(
        cls,
        weight: Tensor,
        squares: Tensor,
        bits: int,
        group: int | None,
        codebook: str = "uniform",
    ) -> "Lattice":
        """The lattice that comes nearest to `weight`; `squares` [in]: mean squares of inputs."""
        book, squares = codebooks.of_width(codebook, bits), squares.float()
        levels = book.levels(bits)
        group = quantizer.grouped(levels, group)
        if book.fitted is not None:
            levels = book.fitted(weight, squares, levels, group)
        scale, multipliers = quantizer.weight_scale(weight, levels, squares, group)
        return cls(_storable(scale, bits), multipliers, group, levels, weight.shape[1])

    @property
    def bits(self) -> int:
        return quantizer.width(self.levels)

    @cached_property
    def step(self) -> Tensor:
        """[out, in], or [out, 1] without groups."""
        return quantizer.weight_step(self.scale, self.multipliers, self.group, self.inputs)

    def scaled(self, factor: Tensor) -> "Lattice":
        """With steps `factor` [out] times as large."""
        return replace(self, scale=_storable(self.scale * factor, self.bits))

    def nearest(self, weight: Tensor) -> Tensor:
        """The codes [out, in] of the values nearest to `weight`."""
        return quantizer.round_weight(weight, self.step, self.levels)


def _storable(scale: Tensor, bits: int) -> Tensor:
    """`scale` as it is stored: below 8 bits in float16, since it takes room beside few bits."""
    return scale.half().float() if bits < 8 and quantizer.fits_half(scale) else scale


@dataclass(frozen=True)
class Metric:
    """What errors of weights are measured by: the mean [in, in] of products of inputs, and the
    damping that suits how many there were."""

    gram: Tensor
    damping: float


Codes = Callable[[Tensor, Lattice, Metric], Tensor]
"""(weight [out, in], lattice, metric) → codes [out, in]."""

Refined = Callable[[Tensor, Lattice, Metric, Tensor], tuple[Lattice, Tensor]]
"""The same and codes → a lattice and codes of it with less error."""


@dataclass(frozen=True)
class Rounding:
    """A method. `feedback`: whether errors of some weights are made good by others.

    `refined` is the long way from `codes` to better ones, which is not gone where layers are only
    compared.
    """

    codes: Codes
    refined: Refined | None = None
    feedback: bool = True


def rounding_of(name: str) -> Rounding:
    return cast(Rounding, registry.load_module(PACKAGE, name).ROUNDING)
