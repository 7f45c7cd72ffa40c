"""Per-channel shifts and scales of activations that the neighbouring weights absorb.

Channels with wide ranges decide the step of a per-tensor quantizer and the narrow ones pay.
RepQ-ViT (2212.08254, section 3.2) quantizes each channel on its own and moves the difference into
the LayerNorm before and the weights after. Here it is moved in part and the scales of
outlier channels are clipped, since a wide channel comes back as a wide weight column.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STRENGTHS = (0.5, 0.75)
"""Of `reparametrisations`, for inputs of 8 bits."""


class Reparametrisation(NamedTuple):
    """x → (x − shift) / scale, both [channels]; `strength` and `clip` say how they were made."""

    shift: Tensor
    scale: Tensor
    strength: float
    clip: float

    def apply(self, x: Tensor) -> Tensor:
        """`x` [..., channels], reparametrised."""
        return (x - self.shift) / self.scale


def identity(channels: int) -> Reparametrisation:
    return Reparametrisation(torch.zeros(channels), torch.ones(channels), 0.0, 0.0)


def levelled(low: Tensor, high: Tensor, alike: int) -> Reparametrisation:
    """That which brings channels with the ranges `low` … `high` [channels], each so many neighbours
    `alike`, to one range, whose 128th step from below is 0.

    Values on 256 levels, evenly spaced from end to end, as pixels of 8 bits are however they were
    normalised, then lie on the codes of 8 bits: rounding them loses nothing.
    """
    low, high = low.view(-1, alike).amin(1), high.view(-1, alike).amax(1)
    span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    middle, scale = low + span * 128 / 255, span / span.mean()
    shift, scale = (each.repeat_interleave(alike) for each in (middle, scale))
    return Reparametrisation(shift, scale, 1.0, 0.0)


def reparametrisations(
    low: Tensor, high: Tensor, strengths: Sequence[float] = STRENGTHS
) -> Iterator[Reparametrisation]:
    """Those that bring channels with the ranges `low` … `high` [channels] nearer to one range.

    The scale is (range / mean range)^strength, ranges first limited to their own quantiles
    `clip` … 1 − `clip`; the shift moves the middle of each range towards 0 by `strength`.
    """
    middle, half = (high + low) / 2, (high - low) / 2
    half = half.clamp_min(half.max() * 1e-3 + torch.finfo(torch.float32).tiny)
    for clip in (0.0, 0.02):
        bounds = torch.quantile(half, torch.tensor([clip, 1 - clip]))
        limited = half.clamp(bounds[0], bounds[1])
        for strength in strengths:
            scale = (limited / limited.mean()) ** strength
            yield Reparametrisation(middle * strength, scale, strength, clip)
