"""All become new ones, around the means of rectangles of patches."""

from typing import cast

from vitcompress.methods.centres import rectangles
from vitcompress.methods.selection import unit
from vitcompress.methods.tokens import READER, Method, Mixture, Tokens, gathered


def choose(tokens: Tokens, keep: int) -> Mixture:
    """As `soft`, with STViT's centres: tokens pooled over a grid of `keep` rectangles."""
    areas = rectangles(keep, cast(tuple[int, int], tokens.grid)).to(tokens.points)
    return gathered(unit(areas @ tokens.points), tokens)


METHOD = Method(
    reading=READER,
    choose=choose,
    compared=lambda count, keep: 2 * keep * count,
    mixtures=True,
)
