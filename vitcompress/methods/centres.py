"""Centres that tokens gather around: rectangles of a grid, points far from each other, means."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from vitcompress.methods.selection import rows


def rectangles(count: int, grid: tuple[int, int]) -> Tensor:
    """The share of each patch of `grid` in each of `count` rectangles that tile it.

    Float32 [count, patches]. Rectangles lie in bands of about as many as make them square; patches
    on an edge are split by area. Each row sums to 1; with as many rectangles as patches it is the
    identity.
    """
    height, width = grid
    bands = max(1, min(height, round(math.sqrt(count * height / width))))
    bounds = [count * band // bands for band in range(bands + 1)]
    across = [_intervals(after - before, width) for before, after in pairwise(bounds)]
    cells = [
        (row[None, :, None] * columns[:, None, :]).flatten(1)
        for row, columns in zip(_intervals(bands, height), across, strict=True)
    ]
    areas = torch.cat(cells)
    return areas / areas.sum(1, keepdim=True)


def _intervals(count: int, length: int) -> Tensor:
    """How much of each of `length` unit steps lies in each of `count` equal parts of them."""
    edges = torch.arange(count + 1, dtype=torch.float64) * length / count
    steps = torch.arange(length, dtype=torch.float64)
    ends = torch.minimum(edges[1:, None], steps + 1)
    return (ends - torch.maximum(edges[:-1, None], steps)).clamp_min(0).float()


def farthest(points: Tensor, weight: Tensor, count: int) -> Tensor:
    """One after the other, the point of most weight × distance to the nearest chosen before it.

    Gonzalez' greedy k-centre (1985), weighted; the first is the heaviest. `points` [B, n, d] of
    norm 1, whose distance is 1 − cos; `weight` [B, n] > 0. Returns indices [B, count].
    """
    away = (1 - points @ points.mT).clamp_min(0)
    away = away - torch.eye(points.shape[1], device=points.device)  # never the same one again
    prices, price = weight[:, None] * away, 2 * weight
    chosen = []
    for _ in range(count):
        index = price.argmax(1, keepdim=True)
        chosen.append(index)
        price = torch.minimum(price, rows(prices, index)[:, 0])
    return torch.cat(chosen, 1)
