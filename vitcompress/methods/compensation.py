"""Closed-form refits of a linear layer from moments of its inputs and targets.

Inputs carry a constant 1 as their last component, so that a refit gives weight and bias at once:
a layer is [in + 1, out], its last row the bias.
"""

from typing import NamedTuple

import torch
from torch import Tensor

VARYING = 1e-5
"""The least share of a mean square that is variance and not rounding."""


class Moments(NamedTuple):
    """Weighted sums over tokens, float64: Σ w x xᵀ [n, n], Σ w x yᵀ [n, out] and Σ w yᵀy []."""

    gram: Tensor
    cross: Tensor
    energy: Tensor

    def plus(self, other: "Moments") -> "Moments":
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))

    def error(self, layer: Tensor) -> float:
        """The weighted sum of squared errors of `layer` [n, out]."""
        inner = (layer * (self.gram @ layer)).sum() - 2 * (layer * self.cross).sum()
        return float(inner + self.energy)


class Fit(NamedTuple):
    """What a layer is refitted by: the Gram matrix [n, n] of its inputs, the constant among them,
    and the damping, a share of the mean of the diagonal."""

    gram: Tensor
    damping: float


def with_constant(x: Tensor) -> Tensor:
    """`x` [..., n] with a last component 1."""
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def joined(weight: Tensor, bias: Tensor) -> Tensor:
    """`weight` [out, in] and `bias` [out] as one layer [in + 1, out], float64."""
    return torch.cat([weight.T, bias[None]]).double()


def covariance(gram: Tensor) -> Tensor:
    """The covariance [n − 1, n − 1] of the inputs but the constant, from their Gram matrix."""
    mean = gram[:-1, -1] / gram[-1, -1]
    return gram[:-1, :-1] / gram[-1, -1] - torch.outer(mean, mean)


def varying(covariance: Tensor, whole: Tensor) -> Tensor:
    """`covariance` of inputs whose mean of x xᵀ is `whole`, both [n, n]; `whole` for inputs that
    never change, whose covariance is rounding errors."""
    return covariance if covariance.trace() > VARYING * whole.trace() else whole


def refit(moments: Moments, prior: Tensor, damping: float) -> Tensor:
    """The layer of least squared error, drawn towards `prior` [n, out].

    Minimises Σ w ‖y − Lᵀx‖² + λ ‖L − prior‖², with λ the mean of the diagonal of the Gram matrix
    times `damping`, and without a penalty on the bias. Targets that also hold the errors made
    before this layer are only partly a function of its inputs: with a prior of zero the refit
    would shrink the layer and fit the images at hand; a prior that already reproduces the layer
    leaves to the data what the data can show.
    """
    return _solved(moments.gram, moments.cross, prior, damping)


def projected(fit: Fit, layer: Tensor, kept: Tensor) -> Tensor:
    """The layer on the inputs `kept` that comes nearest to `layer` [n, out] on all of them.

    What `elimination.eliminate` counts on: changes of the kept weights are damped, so that nothing
    changes where nothing is missed. `kept` [k]: indices of inputs, the constant not among them.
    Returns [k + 1, out].
    """
    gram, damping = fit
    rows = torch.cat([kept, torch.tensor([len(gram) - 1])])
    cross = gram[rows] @ layer
    return _solved(gram[rows][:, rows], cross, layer[rows], damping)


def _solved(gram: Tensor, cross: Tensor, prior: Tensor, damping: float) -> Tensor:
    level = gram.diagonal()[:-1].mean().clamp_min(torch.finfo(torch.float32).tiny)
    penalty = (damping * level).expand(len(gram)).clone()
    penalty[-1] = 0
    solution: Tensor = torch.linalg.solve(
        gram + torch.diag(penalty), cross + penalty[:, None] * prior
    )
    return solution
