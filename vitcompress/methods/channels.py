"""A scale and a shift for each channel, by least squares.

What a layer gives is multiplied by a number and moved by another, channel by channel: both can be
taken into its weights and its bias, and cost nothing at run time (the compensation of QwT-v2,
2505.20932).
"""

from typing import NamedTuple

import torch
from torch import Tensor

_BOUNDS = (0.5, 2.0)  # of scales: beyond them channels have little to do with their targets


class ChannelMoments(NamedTuple):
    """Weighted sums over tokens, float64: Σ w [], and of each channel Σ w z, Σ w t, Σ w z², Σ w z t
    and Σ w t² [C]."""

    weight: Tensor
    given: Tensor
    wanted: Tensor
    given_squares: Tensor
    products: Tensor
    wanted_squares: Tensor

    @classmethod
    def of(cls, given: Tensor, wanted: Tensor, weights: Tensor) -> "ChannelMoments":
        """Of values z `given` and t `wanted` [n, tokens, C], with the `weights` [tokens]."""
        z, t, w = given.double(), wanted.double(), weights.double()[:, None]
        sums = ((w * each).sum((0, 1)) for each in (z, t, z * z, z * t, t * t))
        return cls(len(z) * w.sum(), *sums)

    def plus(self, other: "ChannelMoments") -> "ChannelMoments":
        return ChannelMoments(*(a + b for a, b in zip(self, other, strict=True)))


class Affine(NamedTuple):
    """A scale and a shift of each channel, [C]."""

    scale: Tensor
    shift: Tensor


def fitted(moments: ChannelMoments, damping: float, shifts: bool = True) -> Affine:
    """The scale a and shift b of least Σ w (a z + b − t)² + λ Σ w ((a − 1)² Var z + b²).

    λ: the `damping`. Scales stay between ½ and 2. Without `shifts` b is 0.
    """
    weight, z, t, zz, zt, _ = moments
    variance = (zz - z.square() / weight).clamp_min(0)
    rest = weight * (1 + damping) if shifts else torch.full_like(weight, torch.inf)
    # With the shift that is best for each scale.
    curve = zz + damping * variance - z.square() / rest
    slope = zt + damping * variance - z * t / rest
    scale = torch.where(curve > 0, slope / curve, torch.ones_like(slope)).clamp(*_BOUNDS)
    return Affine(scale, (t - scale * z) / rest)
