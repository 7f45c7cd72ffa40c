"""One layer of the sparsify stage: the order of its inputs, and what it becomes."""

from typing import cast

import torch
from torch import Tensor, nn

from vitcompress.methods import factors, sparsity
from vitcompress.methods.patterns import Pattern
from vitcompress.model.modules.factored import FactoredLayer, FactoredLinear, whole
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.criteria import Asked, criterion_of
from vitcompress.stages.sparsify.moments import LayerMoments

Sparsity = tuple[Pattern, float]
"""A pattern, and the share of weights that it keeps."""

_STEPS, _SWEEPS, _ROUNDS = 40, 4, 10
_QUICK = 12  # steps of reconstruction, enough to compare layers


def better_order(weight: Tensor, moments: LayerMoments, pattern: Pattern) -> Tensor:
    """An order of the inputs in which an n:m pattern keeps more, indices [in]."""
    values = sparsity.block_scores(weight, moments.inverse, (1, 1))
    return sparsity.gathered(values, pattern, _ROUNDS)


def compressed(
    layer: nn.Linear,
    moments: LayerMoments,
    option: Sparsity,
    config: SparsifyConfig,
    seed: int,
    quick: bool = False,
) -> nn.Linear | FactoredLinear:
    """What `layer` becomes; with `quick`, nearly so, enough to compare layers."""
    pattern, density = option
    if pattern.blocks:
        return factored(layer, moments, option, config.reconstruct)
    asked = Asked(layer.weight, moments, pattern, density, seed)
    mask = criterion_of(config.criterion).chosen(asked, quick)
    return sparse(layer, moments, mask, pattern, config.reconstruct, _QUICK if quick else 0)


def factored(
    layer: nn.Linear, moments: LayerMoments, option: Sparsity, reconstruct: bool
) -> FactoredLinear:
    """Two products near to `layer`: in output with `reconstruct`, else in weights."""
    described = layer_of(layer, option)
    weight = layer.weight.detach().double()
    hessian, outputs = moments.hessian, moments.outputs
    if not reconstruct:
        hessian, outputs = torch.eye(len(hessian), dtype=hessian.dtype), torch.ones_like(outputs)
    sizes = described.blocks, described.rank
    found = factors.factored(weight @ hessian, hessian, *sizes, outputs)
    bias = cast(Tensor | None, layer.bias)
    if bias is not None and reconstruct:
        bias = bias + (weight - factors.composed(found)) @ moments.mean
    twin = described.empty(layer)
    twin.fill(found, bias)
    return twin


def layer_of(layer: nn.Linear, option: Sparsity) -> FactoredLayer:
    """The description of the two products that `option` makes of `layer`."""
    (pattern, density), shape = option, (layer.out_features, layer.in_features)
    rank = factors.rank_for(shape, pattern.blocks, density)
    return FactoredLayer(blocks=pattern.blocks, rank=rank)


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


def distortion(
    layer: nn.Linear, twin: nn.Linear | FactoredLinear, moments: LayerMoments
) -> tuple[float, float]:
    """The squared error of the output of `twin`, its mean made good, each output times its
    importance; and the same as a share of the output's variance."""
    outputs = moments.outputs.double()
    found = twin if isinstance(twin, nn.Linear) else whole(twin)
    change = sparsity.row_errors(found.weight - layer.weight, moments.covariance)
    power = sparsity.row_errors(layer.weight, moments.covariance).clamp_min(1e-30)
    return float(change @ outputs), float(change.sum() / power.sum())
