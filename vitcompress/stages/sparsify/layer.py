"""One layer of the sparsify stage: the order of its inputs, and the values of what stays."""

from typing import cast

from torch import Tensor, nn

from vitcompress.methods import sparsity
from vitcompress.methods.patterns import Pattern
from vitcompress.stages.sparsify.moments import LayerMoments

_STEPS, _SWEEPS, _ROUNDS = 40, 4, 10


def better_order(weight: Tensor, moments: LayerMoments, pattern: Pattern) -> Tensor:
    """An order of the inputs in which an n:m pattern keeps more, indices [in]."""
    values = sparsity.block_scores(weight, moments.inverse, (1, 1))
    return sparsity.gathered(values, pattern, _ROUNDS)


def sparse(
    layer: nn.Linear,
    moments: LayerMoments,
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
            found = sparsity.refined_groups(found, moments.hessian, target, pattern, _SWEEPS)
            found = sparsity.reconstructed(found, moments.hessian, target, found != 0, _STEPS)
    twin = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    twin.requires_grad_(False).weight.copy_(found)
    if cast(Tensor | None, layer.bias) is not None:
        shift = (weight - found) @ moments.mean if reconstruct else 0
        twin.bias.copy_(layer.bias + shift)
    return twin


def distortion(layer: nn.Linear, twin: nn.Linear, moments: LayerMoments) -> tuple[float, float]:
    """The squared error of the output of `twin`, its mean made good, each output times its
    importance; and the same as a share of the output's variance."""
    outputs = moments.outputs.double()
    change = sparsity.row_errors(twin.weight - layer.weight, moments.covariance)
    whole = sparsity.row_errors(layer.weight, moments.covariance).clamp_min(1e-30)
    return float(change @ outputs), float(change.sum() / whole.sum())
