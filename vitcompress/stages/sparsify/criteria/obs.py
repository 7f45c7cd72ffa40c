"""The optimal brain surgeon's saliency, tr(W_b ([H⁻¹]_bb)⁻¹ W_bᵀ), errors made good as it goes.

SparseGPT (2301.00774) for n:m; for other patterns cells go in rounds, with refits between them.
"""

from torch import Tensor

from vitcompress.methods import sparsity
from vitcompress.stages.sparsify.criteria import Asked, Criterion


def kept(asked: Asked) -> Tensor:
    weight, hessian, pattern = asked.weight, asked.moments.hessian, asked.pattern
    if pattern.group:
        return sparsity.sweep(weight, hessian, pattern)
    left = sparsity.thinned(weight, hessian, pattern, asked.density)
    return sparsity.weight_mask(left, pattern.cell, weight.shape)


def at_once(asked: Asked) -> Tensor:
    """By the saliency of each cell alone."""
    weight, pattern = asked.weight, asked.pattern
    values = sparsity.block_scores(weight, asked.moments.inverse, pattern.cell)
    mask = sparsity.keep(values, pattern, asked.density)
    return sparsity.weight_mask(mask, pattern.cell, weight.shape)


CRITERION = Criterion(kept, at_once)
