"""Criteria: what ranks weights that may become zero. One file a criterion, found by its name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vitcompress import registry
from vitcompress.methods import sparsity
from vitcompress.methods.patterns import Pattern
from vitcompress.stages.sparsify.moments import LayerMoments

PACKAGE = __name__


@dataclass(frozen=True)
class Asked:
    """The weights [out, in] of a layer, moments of its inputs, and how much is to stay."""

    weight: Tensor
    moments: LayerMoments
    pattern: Pattern
    density: float
    seed: int


@dataclass(frozen=True)
class Criterion:
    """`kept`: the weights that stay, bool [out, in]; `quick`: the same judged all at once, enough
    to compare layers (None: `kept` is quick)."""

    kept: Callable[[Asked], Tensor]
    quick: Callable[[Asked], Tensor] | None = None

    def chosen(self, asked: Asked, quick: bool = False) -> Tensor:
        """The weights that stay, bool [out, in]."""
        if asked.density == 1:
            return torch.ones_like(asked.weight, dtype=torch.bool)
        return (self.quick if quick and self.quick else self.kept)(asked)


def by_score(score: Callable[[Asked], Tensor], by_row: bool = False) -> Criterion:
    """Cells with the largest sums of a `score` [out, in] stay; single weights, where `by_row`, as
    many of each row."""

    def kept(asked: Asked) -> Tensor:
        cell = asked.pattern.cell
        values = sparsity.cells(score(asked), cell)
        alike = by_row and cell == (1, 1)
        mask = sparsity.keep(values, asked.pattern, asked.density, alike)
        return sparsity.weight_mask(mask, cell, asked.weight.shape)

    return Criterion(kept)


def criterion_of(name: str) -> Criterion:
    return cast(Criterion, registry.load_module(PACKAGE, name).CRITERION)
