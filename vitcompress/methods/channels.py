"""A scale and a shift for each channel, by least squares in a metric of the channels.

What a layer gives is multiplied by a number and moved by another, channel by channel: both can be
taken into its weights and its bias, and cost nothing at run time (the compensation of QwT-v2,
2505.20932; there each channel counts alike and by itself).
"""

from typing import NamedTuple

import torch
from torch import Tensor

_BOUNDS = (0.5, 2.0)  # of scales: beyond them channels have little to do with their targets
_LEAST = 1e-9  # of the mean of a diagonal: what makes a matrix invertible and nothing else


class ChannelMoments(NamedTuple):
    """Weighted sums over tokens, float64, of what is given z and what it lacks e = t − z: Σ w [],
    Σ w z and Σ w e [C], Σ w z zᵀ and Σ w z eᵀ [C, C]."""

    weight: Tensor
    given: Tensor
    lacking: Tensor
    gram: Tensor
    cross: Tensor

    @classmethod
    def of(cls, given: Tensor, wanted: Tensor, weights: Tensor) -> "ChannelMoments":
        """Of values `given` and `wanted` [n, tokens, C], tokens counting by `weights` [tokens]."""
        z, e = given.flatten(0, 1), (wanted - given).flatten(0, 1)
        weighted = (given * weights[:, None]).flatten(0, 1)
        lacking = ((wanted - given) * weights[:, None]).flatten(0, 1)
        sums = (weighted.sum(0), lacking.sum(0), weighted.T @ z, weighted.T @ e)
        return cls(len(given) * weights.sum().double().cpu(), *(t.double().cpu() for t in sums))

    def plus(self, other: "ChannelMoments") -> "ChannelMoments":
        return ChannelMoments(*(a + b for a, b in zip(self, other, strict=True)))


class Affine(NamedTuple):
    """A scale and a shift of each channel, float64 [C]."""

    scale: Tensor
    shift: Tensor


def fitted(moments: ChannelMoments, metric: Tensor, damping: float, shifts: bool = True) -> Affine:
    """The scales a and shifts b that leave least of Σ w rᵀ M r, with r = a∘z + b − t.

    M: the `metric` [C, C], positive semidefinite. Added is `damping` times what scales and shifts
    would cost by themselves, one channel at a time: Σ M_cc ((a_c − 1)² Σ w z_c² + b_c² Σ w).
    Without `shifts` b is 0. Scales stay between ½ and 2.
    """
    weight, given, lacking, gram, cross = moments
    metric = metric.double()
    # Of changes u of the scales and b: (z∘u + b − e)ᵀ M (z∘u + b − e), summed.
    of_both = metric * given[:, None]
    normal = torch.cat(
        [torch.cat([metric * gram, of_both], 1), torch.cat([of_both.T, metric * weight], 1)]
    )
    wanted = torch.cat([(metric * cross).sum(1), metric @ lacking])
    if not shifts:
        normal, wanted = normal[: len(metric), : len(metric)], wanted[: len(metric)]
    diagonal = normal.diagonal()
    penalty = damping * diagonal + _LEAST * diagonal.mean() + torch.finfo(torch.float64).tiny
    change = torch.linalg.solve(normal + torch.diag(penalty), wanted)
    scale = (1 + change[: len(metric)]).clamp(*_BOUNDS)
    return Affine(scale, change[len(metric) :] if shifts else torch.zeros_like(scale))
