"""Windows that tokens attend in, and positions relative to each other, as constants of a model.

Windows are computed as heads: tokens are put in order by one constant index, which does the shift,
the padding and the partition at once, and each window of each head is one head of the attention.
The batch stays as it is, and so do all shapes but the batch.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_APART = -100.0  # timm's logit of tokens that only the shift has brought together

Grid = tuple[int, int]
"""Rows and columns."""


class Windows(nn.Module):
    """The partition of a grid of tokens, shifted and padded, into windows (Liu et al., ICCV 2021).

    `count` windows of `size` tokens each; `padded`: whether zeros have to fill some of them.
    """

    order: Tensor
    inverse: Tensor
    regions: Tensor | None

    def __init__(self, grid: Grid, window: Grid, shift: Grid) -> None:
        super().__init__()
        self.size = window[0] * window[1]
        whole = [-(-length // side) * side for length, side in zip(grid, window, strict=True)]
        self.count = whole[0] * whole[1] // self.size
        self.padded = (whole[0], whole[1]) != tuple(grid)
        tokens = grid[0] * grid[1]
        number = torch.arange(tokens).view(grid).roll((-shift[0], -shift[1]), (0, 1))
        padding = (0, whole[1] - grid[1], 0, whole[0] - grid[0])
        order = _parted(F.pad(number, padding, value=tokens), window).T.flatten()
        self.register_buffer("order", order, persistent=False)
        inverse = order.argsort(stable=True)[:tokens]
        self.register_buffer("inverse", inverse, persistent=False)
        regions = None
        if any(shift):
            down, across = (
                (torch.arange(length) >= length - side).int()
                + (torch.arange(length) >= length - step).int()
                for length, side, step in zip(whole, window, shift, strict=True)
            )
            regions = _parted(3 * down[:, None] + across, window)
        self.register_buffer("regions", regions, persistent=False)

    def parted(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C], row by row → [B, size · count, C], by place and then by window."""
        if self.padded:
            x = F.pad(x, (0, 0, 0, 1))
        return x.index_select(1, self.order)

    def joined(self, x: Tensor) -> Tensor:
        """The inverse of `parted`: what came of the padding is dropped."""
        return x.index_select(1, self.inverse)

    def as_heads(self, x: Tensor) -> Tensor:
        """[B, size · count, C] → [B, size, count · C]."""
        return cast(Tensor, x.unflatten(1, (self.size, self.count))).flatten(2)

    def as_tokens(self, x: Tensor) -> Tensor:
        """The inverse of `as_heads`."""
        return cast(Tensor, x.unflatten(-1, (self.count, -1))).flatten(1, 2)

    def apart(self, x: Tensor) -> Tensor:
        """[B, size · count, C] → [B · count, size, C], each window an entry of the batch."""
        return cast(Tensor, x.unflatten(1, (self.size, self.count))).transpose(1, 2).flatten(0, 1)

    def bias(self, of_heads: Tensor) -> Tensor:
        """[1, heads, size, size] → [1, count · heads, size, size]: no token attends to tokens that
        come from another side of the grid."""
        if self.regions is None:
            return of_heads.expand(self.count, -1, -1, -1).flatten(0, 1)[None]
        apart = self.regions[:, None, :, None] != self.regions[:, None, None, :]
        return (of_heads + apart * _APART).flatten(0, 1)[None]


def windows(grid: Grid, window: Grid, shift: Grid) -> Windows | None:
    """The windows of a grid; None where there is but one, of just the tokens as they are."""
    if tuple(window) == tuple(grid) and not any(shift):
        return None
    return Windows(grid, window, shift)


def _parted(grid: Tensor, window: Grid) -> Tensor:
    """[rows, columns] → [windows, places in a window]."""
    rows, columns = grid.shape
    parts = grid.view(rows // window[0], window[0], columns // window[1], window[1])
    return parts.transpose(1, 2).flatten(2).flatten(0, 1)


class RelativePositions(nn.Module):
    """Which entry of a table stands for where a query lies as its key sees it, as timm counts them.

    A class token before the patches of the grid has three entries of its own, the last ones: of its
    query to patches, of patches to its key, and of both.
    """

    places: Tensor

    def __init__(self, grid: Grid, class_token: bool) -> None:
        super().__init__()
        down, across = 2 * grid[0] - 1, 2 * grid[1] - 1
        self.middle = down * across // 2
        self.own = down * across if class_token else None
        places = torch.arange(grid[0])[:, None] * across + torch.arange(grid[1])
        self.register_buffer("places", places.flatten(), persistent=False)

    @property
    def tokens(self) -> int:
        return len(self.places) + (self.own is not None)

    def forward(self) -> Tensor:
        """int64 [N, N]: of each query and key."""
        index = self.places[:, None] - self.places + self.middle
        if self.own is None:
            return index
        patches = len(index)
        index = torch.cat([index.new_full((patches, 1), self.own + 1), index], 1)
        first = index.new_full((1, patches), self.own)
        return torch.cat([torch.cat([index.new_full((1, 1), self.own + 2), first], 1), index])


class UnitNorm(nn.Module):
    """Vectors of length 1, times a factor for each head: what makes attention one of cosines."""

    factor: nn.Parameter | None

    def __init__(self, factor: Tensor | None = None) -> None:
        super().__init__()
        parameter = None if factor is None else nn.Parameter(factor, requires_grad=False)
        self.register_parameter("factor", parameter)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, heads, d]; `factor` [heads, 1]."""
        y = F.normalize(x, dim=-1)
        return y if self.factor is None else y * self.factor


class PatchMerging(nn.Module):
    """timm's downsampling of a windowed model: each 2 × 2 tokens become one, of other width."""

    def __init__(self, source: Any, grid: Grid, norm_after: bool) -> None:
        super().__init__()
        self.grid, self.norm_after = grid, norm_after
        self.norm, self.reduction = source.norm, source.reduction

    def forward(self, x: Tensor) -> Tensor:
        """[B, rows · columns, C] → [B, ⌈rows / 2⌉ · ⌈columns / 2⌉, out]."""
        rows, columns = self.grid
        x = x.unflatten(1, self.grid)
        if rows % 2 or columns % 2:
            x = F.pad(x, (0, 0, 0, columns % 2, 0, rows % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [B, rows, 2, columns, 2, C]
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)
        if self.norm_after:
            return cast(Tensor, self.norm(self.reduction(x)))
        return cast(Tensor, self.reduction(self.norm(x)))
