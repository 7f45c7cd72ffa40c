"""All become new ones, around means that k-means finds."""

from vitcompress.methods.merging import soft_grid
from vitcompress.methods.selection import unit
from vitcompress.methods.tokens import READER, Method, Mixture, Tokens, gathered

_STEPS = 3


def choose(tokens: Tokens, keep: int) -> Mixture:
    """As `soft`, with centres that a few steps of soft spherical k-means move from those of
    `soft_grid`."""
    found = soft_grid.choose(tokens, keep)
    for _ in range(_STEPS):
        parts = found.shares * found.weight[:, None]
        found = gathered(unit(parts @ tokens.points), tokens)
    return found


METHOD = Method(
    reading=READER,
    choose=choose,
    compared=lambda count, keep: 2 * (1 + _STEPS) * keep * count,
    mixtures=True,
)
