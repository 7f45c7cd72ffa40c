"""One layer of the sparsify stage: which weights stay, and their new values."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vitcompress.methods import sparsity
from vitcompress.methods.sparsity import Criterion, Pattern
from vitcompress.stages.calibrate import LayerStatistics

_DAMPING = 1e-3  # of the Gram matrix, as a share of its mean diagonal
_SWEEPS = 4


@dataclass(frozen=True)
class Moments:
    """Of a layer's inputs, weighted by importance: mean [in], covariance and its damped form
    [in, in], all float64; `outputs` [out]: the mean importance of each output."""

    mean: Tensor
    covariance: Tensor
    hessian: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, found: LayerStatistics, has_bias: bool) -> "Moments":
        """Without a bias to make it good, the mean counts like any other error."""
        mean = found.total / found.weight * has_bias
        covariance = found.gram / found.weight - torch.outer(mean, mean)
        # Few rows say little of their covariance: damp it by how many there are for each input.
        share = _DAMPING + 0.1 * len(covariance) / float(found.weight)
        level = share * covariance.diagonal().mean().clamp_min(1e-30)
        eye = torch.eye(len(covariance), dtype=torch.float64)
        return cls(mean, covariance, covariance + level * eye, found.output_weights)


def chosen(
    weight: Tensor,
    moments: Moments,
    pattern: Pattern,
    density: float,
    criterion: Criterion,
    seed: int,
) -> Tensor:
    """The weights that stay, bool [out, in]."""
    if density == 1:
        return torch.ones_like(weight, dtype=torch.bool)
    if criterion == "obs" and pattern.cell == (1, 1):
        return sparsity.sweep(weight, moments.hessian, pattern, density)
    if criterion == "obs":
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments.hessian))
        values = sparsity.block_scores(weight, inverse, pattern.cell)
    else:
        second = moments.covariance.diagonal() + moments.mean.square()
        each = sparsity.scores(criterion, weight, second, moments.outputs, seed)
        values = sparsity.cells(each, pattern.cell)
    by_row = criterion == "wanda" and pattern.cell == (1, 1)
    mask = sparsity.keep(values, pattern, density, by_row)
    return sparsity.spread(mask, pattern.cell)


def sparse(
    layer: nn.Linear, moments: Moments, mask: Tensor, pattern: Pattern, reconstruct: bool
) -> nn.Linear:
    """A layer with zeros outside `mask`; with `reconstruct`, near in output to `layer`.

    Where weights are refitted the mask of an n:m pattern may change for a better one.
    """
    weight = layer.weight.detach().double()
    found = weight * mask
    if reconstruct and not mask.all():
        target = weight @ moments.hessian
        found = sparsity.reconstructed(found, moments.hessian, target, mask)
        if pattern.group:
            found = sparsity.refined(found, moments.hessian, target, pattern, _SWEEPS)
            found = sparsity.reconstructed(found, moments.hessian, target, found != 0)
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
    return float(change @ outputs), float((change.sum() / whole.sum()))
