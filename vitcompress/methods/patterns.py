"""Patterns of zeros and of small products, and how recipes write them."""

import re
from typing import NamedTuple


class Pattern(NamedTuple):
    """`kept` of each `group` weights along the inputs (0 of 0: by density), in whole `cell`s.

    With `blocks` there are no zeros: the weight is a grid of blocks × blocks parts of low rank.
    """

    cell: tuple[int, int] = (1, 1)
    kept: int = 0
    group: int = 0
    blocks: int = 0

    def density(self, asked: float) -> float:
        """The share of weights that stay where `asked` is what patterns without groups keep."""
        return self.kept / self.group if self.group else asked


def parse_pattern(text: str) -> Pattern:
    """`n:m` (n of m stay), `RxC` (blocks of R outputs × C inputs), `unstructured`, `low_rank`, or
    `monarch:B` (B × B parts of low rank).

    Raises `ValueError` for anything else.
    """
    if text == "unstructured":
        return Pattern()
    if text == "low_rank":
        return Pattern(blocks=1)
    if found := re.fullmatch(r"monarch:(\d+)", text):
        if int(found[1]) > 1:
            return Pattern(blocks=int(found[1]))
    elif found := re.fullmatch(r"(\d+):(\d+)", text):
        kept, group = map(int, found.groups())
        if 0 < kept <= group <= 64:
            return Pattern(kept=kept, group=group)
    elif found := re.fullmatch(r"(\d+)x(\d+)", text):
        high, wide = map(int, found.groups())
        if high > 0 and wide > 0:
            return Pattern(cell=(high, wide))
    raise ValueError(
        f"{text!r} is no pattern: give n:m such as 2:4, RxC such as 16x16, unstructured, low_rank, "
        "or monarch:B such as monarch:4"
    )
