"""Rotary position embeddings: one operator, and the module that knows the angles."""

from typing import cast

import torch
from torch import Tensor, nn


def rotated(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
    """Turn the pairs of neighbouring features of x [B, M, 2·c] by angles [positions, c].

    `places` [B, M] (int64): the position of each token; None: the first M, in order.
    """
    if torch.compiler.is_exporting():
        return cast(Tensor, rotation(x, cos, sin, places))
    at = slice(x.shape[1]) if places is None else places
    cos, sin = cos[at], sin[at]
    one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([one * cos - other * sin, other * cos + one * sin], -1).flatten(-2)


@torch.library.custom_op("vitcompress::rotation", mutates_args=())
def rotation(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
    """`rotated` as one node of an exported graph."""
    return rotated(x, cos, sin, places)


@rotation.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
    return torch.empty_like(x)


class Rotation(nn.Module):
    """A rotary position embedding: pairs of neighbouring features of queries and keys are turned.

    The angle of pair c of head h is linear in where a patch lies on the grid, `frequencies`
    [3, heads, pairs] being its constant, its change from row to row, and from column to column.
    Whatever narrows heads takes columns of it, so that a narrow model is described by this tensor.
    The first `prefix` tokens are not turned.
    """

    frequencies: Tensor
    grid: Tensor

    def __init__(self, frequencies: Tensor, grid: tuple[int, int], prefix: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)
        rows, columns = (torch.arange(float(size)) for size in grid)
        patches = torch.cartesian_prod(torch.ones(1), rows, columns)
        whole = torch.cat([torch.zeros(prefix, 3), patches]).to(frequencies.device)
        self.register_buffer("grid", whole, persistent=False)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Turn x [B, M, h·d] of the first M tokens, or of those at `places` [B, M]."""
        angles = (self.grid[..., None] * self.frequencies.flatten(1)).sum(1)
        return rotated(x, angles.cos(), angles.sin(), places)
