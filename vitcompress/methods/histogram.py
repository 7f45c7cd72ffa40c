"""Histograms of many channels at once, filled in one streaming pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 512


@dataclass
class Histogram:
    """Counts [channels, 512] over the range −limit … limit of each channel.

    `limit` [channels] doubles as larger values come, pairs of bins being merged, so that no value
    is ever out of range and no second pass is needed.
    """

    limit: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, channels: int) -> "Histogram":
        return cls(torch.full((channels,), 2.0**-10), torch.zeros(channels, BINS))

    def update(self, x: Tensor) -> None:
        """Count the values of `x`, finite floats [rows, channels]."""
        self.widen(x.abs().amax(0))
        scaled = (x / self.limit).add_(1).mul_(BINS / 2)
        place = scaled.long().clamp_(0, BINS - 1)
        place += torch.arange(x.shape[1]) * BINS
        self.counts += torch.bincount(place.flatten(), minlength=self.counts.numel()).view(-1, BINS)

    def widen(self, largest: Tensor) -> None:
        """Make room for values of up to `largest` [channels]."""
        while (small := largest > self.limit).any():
            merged = torch.zeros(int(small.sum()), BINS)
            merged[:, BINS // 4 : -BINS // 4] = self.counts[small].view(-1, BINS // 2, 2).sum(-1)
            self.counts[small] = merged
            self.limit[small] *= 2

    def centres(self) -> Tensor:
        """The middle of each bin, [channels, 512]."""
        steps = (torch.arange(BINS) + 0.5) * (2 / BINS) - 1
        return self.limit[:, None] * steps


def quantiles(values: Tensor, counts: Tensor, shares: Tensor, steps: int = 8192) -> Tensor:
    """The values below which `shares` [s] of the weight `counts` lie, to 1/`steps` of the range.

    `values` and `counts`: [n]. Returns [s].
    """
    held = counts > 0
    values, counts = values[held], counts[held].double()
    low, high = values.min(), values.max()
    width = (high - low) / steps
    if width == 0:
        return low.expand(len(shares))
    place = ((values - low) / width).long().clamp_(max=steps - 1)
    cumulative = torch.bincount(place, weights=counts, minlength=steps).cumsum(0)
    wanted = shares.double() * cumulative[-1]
    return low + width * (torch.searchsorted(cumulative, wanted) + 0.5)
