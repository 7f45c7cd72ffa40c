"""Grids: quantizers of activations to fewer values than fast kernels know, for study, in floats.

One file a grid, found by its name. It has `candidates`: (sample, bits) → quantizers for values like
those of `sample`, of any shape, each of which maps a tensor onto at most 2^bits values.
"""

from collections.abc import Callable, Iterator
from typing import cast

from torch import Tensor

from vitcompress import registry

PACKAGE = __name__

Quantizer = Callable[[Tensor], Tensor]
"""x → the values on the grid that stand for it."""

# Shares of a sample that lie outside a range, at both ends together.
_TAILS = (0.0, 1e-5, *(10.0 ** -(quarters / 4) for quarters in range(16, 5, -1)))


def ends(sample: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Ranges of a sample, from all of it to nearly all."""
    values = sample.flatten().sort().values
    last = len(values) - 1
    for tail in _TAILS:
        skipped = int(last * tail / 2)
        yield values[skipped], values[last - skipped]


def candidates(kind: str, sample: Tensor, bits: int) -> Iterator[Quantizer]:
    """The candidates of the grid `kind`."""
    grid = registry.load_module(PACKAGE, kind)
    return cast(Iterator[Quantizer], grid.candidates(sample, bits))


def fitted(
    kind: str, sample: Tensor, bits: int, error: Callable[[Tensor], float] | None = None
) -> Quantizer:
    """The candidate of the least `error`, a function of the quantized sample (None: its MSE)."""

    def squared(quantized: Tensor) -> float:
        return float((quantized - sample).square().mean())

    measure = error or squared
    return min(candidates(kind, sample, bits), key=lambda q: measure(q(sample)))
