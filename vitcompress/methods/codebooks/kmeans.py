"""Levels of each layer's own: k-means of its weights over their steps (deep compression,
1510.00149), counted by the mean squares of their inputs."""

import torch
from torch import Tensor

from vitcompress.methods import quantizer
from vitcompress.methods.codebooks import Codebook
from vitcompress.methods.quantizer import Levels, largest_weight, weight_range, width

_ROWS = 64  # of the weights, which are enough to find a few levels
_ROUNDS, _SWEEPS = 3, 8  # of steps and levels in turns; of levels with equal steps
_APART = 2  # even levels, so that others lie between them


def start(bits: int) -> Tensor:
    """Even levels int8 [2^bits], with room beside them for multipliers."""
    low, high = weight_range(bits)
    return torch.arange(low, high + 1, dtype=torch.int8) * _APART


def fitted(weight: Tensor, squares: Tensor, levels: Levels, group: int | None) -> Levels:
    """The levels of least squared error of `weight` that were found from `levels`, with the steps
    that suit them; as large, or larger where there are no multipliers."""
    weight = weight[:: -(-len(weight) // _ROWS)]
    most = -weight_range(levels)[0] if group is not None else largest_weight(width(levels))
    best, least = levels, torch.inf
    for _ in range(_ROUNDS):
        scale, multipliers = quantizer.weight_scale(weight, levels, squares, group)
        step = quantizer.weight_step(scale, multipliers, group, weight.shape[1])
        change = quantizer.round_weight(weight, step, levels) * step - weight
        error = float((change.square() * squares).sum())
        if error < least:
            best, least = levels, error
        values, counts = weight / step, (squares * step.square()).expand_as(weight)
        centres = _means(values.flatten(), counts.flatten(), levels)
        largest = centres.abs().amax().clamp_min(torch.finfo(centres.dtype).tiny)
        levels = (centres * (most / largest)).round().to(torch.int8)
    return best


def _means(values: Tensor, counts: Tensor, levels: Levels) -> Tensor:
    """Lloyd's steps in one dimension from `levels`; 0 stays one, for weights that are zero."""
    assert isinstance(levels, Tensor)
    centres, zero = levels.to(values), quantizer.zero_code(levels)
    for _ in range(_SWEEPS):
        index = torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)
        total = torch.zeros_like(centres).index_add_(0, index, counts)
        sums = torch.zeros_like(centres).index_add_(0, index, counts * values)
        centres = torch.where(total > 0, sums / total.clamp_min(1e-30), centres)
        centres[zero] = 0
    return centres


CODEBOOK = Codebook((2, 3, 4, 5), start, fitted)
