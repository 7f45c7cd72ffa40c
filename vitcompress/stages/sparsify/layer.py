"""One layer of the sparsify stage: which weights stay, and their new values."""

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from vitcompress.methods import sparsity
from vitcompress.methods.patterns import Criterion, Pattern
from vitcompress.stages.calibrate import LayerStatistics

_DAMPING = 1e-3  # of the Gram matrix, as a share of its mean diagonal
_STEPS, _SWEEPS, _ROUNDS = 40, 4, 10


@dataclass(frozen=True)
class Moments:
    """Of a layer's inputs, weighted by importance: mean [in], covariance and its damped form
    [in, in], all float64; `outputs` [out]: the mean importance of each output."""

    mean: Tensor
    covariance: Tensor
    hessian: Tensor
    outputs: Tensor

    @cached_property
    def inverse(self) -> Tensor:
        """The inverse of `hessian`."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.hessian))

    @classmethod
    def of(cls, found: LayerStatistics, has_bias: bool) -> "Moments":
        """Without a bias to make it good, the mean counts like any other error."""
        mean = found.total / found.weight * has_bias
        covariance = found.gram / found.weight - torch.outer(mean, mean)
        # Few rows say little of their covariance: damp it by how many there are for each input.
        share = _DAMPING + 0.1 * len(covariance) / max(float(found.effective), 1.0)
        level = share * covariance.diagonal().mean().clamp_min(1e-30)
        eye = torch.eye(len(covariance), dtype=torch.float64)
        return cls(mean, covariance, covariance + level * eye, found.output_weights)

    def ordered(self, order: Tensor) -> "Moments":
        """With the inputs in another order, indices [in]."""
        across = (order[:, None], order[None, :])
        return Moments(
            self.mean[order], self.covariance[across], self.hessian[across], self.outputs
        )


def chosen(
    weight: Tensor,
    moments: Moments,
    pattern: Pattern,
    density: float,
    criterion: Criterion,
    seed: int,
    quick: bool = False,
) -> Tensor:
    """The weights that stay, bool [out, in]; `quick`: judged all at once."""
    if density == 1:
        return torch.ones_like(weight, dtype=torch.bool)
    if criterion == "obs" and pattern.group and not quick:
        return sparsity.sweep(weight, moments.hessian, pattern)
    if criterion == "obs" and not quick:
        left = sparsity.thinned(weight, moments.hessian, pattern, density)
        return sparsity.spread(left, pattern.cell, weight.shape)
    if criterion == "obs":
        values = sparsity.block_scores(weight, moments.inverse, pattern.cell)
    else:
        second = moments.covariance.diagonal() + moments.mean.square()
        each = sparsity.scores(criterion, weight, second, moments.outputs, seed)
        values = sparsity.cells(each, pattern.cell)
    by_row = criterion == "wanda" and pattern.cell == (1, 1)
    mask = sparsity.keep(values, pattern, density, by_row)
    return sparsity.spread(mask, pattern.cell, weight.shape)


def better_order(weight: Tensor, moments: Moments, pattern: Pattern) -> Tensor:
    """An order of the inputs in which an n:m pattern keeps more, indices [in]."""
    values = sparsity.block_scores(weight, moments.inverse, (1, 1))
    return sparsity.gathered(values, pattern, _ROUNDS)


def sparse(
    layer: nn.Linear,
    moments: Moments,
    mask: Tensor,
    pattern: Pattern,
    reconstruct: bool,
    steps: int = 0,
) -> nn.Linear:
    """A layer with zeros outside `mask`; with `reconstruct`, near in output to `layer`.

    Where weights are refitted the mask of an n:m pattern may change for a better one, unless only
    so many `steps` are to be taken.
    """
    weight = layer.weight.detach().double()
    found = weight * mask
    if reconstruct and not mask.all():
        target = weight @ moments.hessian
        found = sparsity.reconstructed(found, moments.hessian, target, mask, steps or _STEPS)
        if pattern.group and not steps:
            found = sparsity.refined(found, moments.hessian, target, pattern, _SWEEPS)
            found = sparsity.reconstructed(found, moments.hessian, target, found != 0, _STEPS)
    twin = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    twin.requires_grad_(False).weight.copy_(found)
    if cast(Tensor | None, layer.bias) is not None:
        shift = (weight - found) @ moments.mean if reconstruct else 0
        twin.bias.copy_(layer.bias + shift)
    return twin


def distortion(layer: nn.Linear, twin: nn.Linear, moments: Moments) -> tuple[float, float]:
    """The squared error of the output of `twin`, its mean made good, each output times its
    importance; and the same as a share of the output's variance."""
    outputs = moments.outputs.double()
    change = sparsity.error(twin.weight - layer.weight, moments.covariance)
    whole = sparsity.error(layer.weight, moments.covariance).clamp_min(1e-30)
    return float(change @ outputs), float(change.sum() / whole.sum())
