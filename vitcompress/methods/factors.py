"""Weights that are two small products: a grid of parts of low rank.

A weight [out, in] is cut into blocks × blocks parts [out / blocks, in / blocks], each of some rank.
One block: a matrix of low rank. More, of rank 1: a Monarch matrix (Dao et al., 2204.00595), but for
the order of its outputs; of higher rank: Monarch with more between its factors. In all cases inputs
go through a block-diagonal product, change places, and go through another.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_SWEEPS = 4


class Factors(NamedTuple):
    """`first` [blocks, blocks · rank, in / blocks], of each part of the inputs; `second` [blocks,
    out / blocks, blocks · rank], of each part of the outputs."""

    first: Tensor
    second: Tensor


def density(shape: tuple[int, int], blocks: int, rank: int) -> float:
    """How many numbers the factors of a weight of `shape` hold, as a share of those it holds; so
    many multiplications they take, too."""
    outputs, inputs = shape
    return blocks * rank * (outputs + inputs) / (outputs * inputs)


def rank_for(shape: tuple[int, int], blocks: int, share: float) -> int:
    """The largest rank, at least 1, whose `density` is at most `share`."""
    return max(1, int(share / density(shape, blocks, 1) + 1e-9))


def composed(factors: Factors) -> Tensor:
    """The weight [out, in] that they stand for."""
    blocks = len(factors.first)
    first = factors.first.unflatten(1, (blocks, -1))  # [of inputs, of outputs, rank, in / blocks]
    second = factors.second.unflatten(2, (blocks, -1))  # [of outputs, out / blocks, of inputs, r]
    parts = torch.einsum("joir,ijrk->joik", second, first)
    return parts.flatten(2).flatten(0, 1)


def factored(
    target: Tensor, hessian: Tensor, blocks: int, rank: int, rows: Tensor | None = None
) -> Factors:
    """The factors whose weight W minimises ½ tr(D (W H Wᵀ)) − tr(D W Tᵀ), for D diagonal.

    Part by part, all of one part of the inputs at once: while the others stay, the best is the
    truncated singular value decomposition of what is wanted, inputs whitened by their part of H.
    One block is done at once, with the tail of singular values as error; for more the sweeps are a
    descent, which ends in least squares for all of `second`.

    Args:
        target: T [out, in]; W₀H where the outputs of weights W₀ are wanted.
        hessian: H [in, in], positive definite.
        blocks: must divide both sizes of T.
        rank: of each part; one that is full already is reached, and no more.
        rows: D [out], what each output is worth (None: all the same).

    Returns float64.
    """
    scale = _positive_root(rows, len(target))
    slope = (target.double() * scale[:, None]).unflatten(0, (blocks, -1))  # [parts, out, in]
    hessian = hessian.double()
    outputs, inputs = slope.shape[1], slope.shape[2] // blocks
    rank_of_part = min(rank, outputs, inputs)
    first = slope.new_zeros(blocks, blocks, rank, inputs)
    second = slope.new_zeros(blocks, outputs, blocks, rank)
    spans = [slice(i * inputs, (i + 1) * inputs) for i in range(blocks)]
    roots = [torch.linalg.cholesky(hessian[span, span]) for span in spans]
    for _ in range(_SWEEPS if blocks > 1 else 1):
        for i, (span, root) in enumerate(zip(spans, roots, strict=True)):
            before = second[:, :, i] @ first[i]
            wanted = slope[:, :, span] + before @ hessian[span, span]
            whitened = torch.linalg.solve_triangular(root.T, wanted, upper=True, left=False)
            left, values, right = torch.linalg.svd(whitened, full_matrices=False)
            left = (left * values[:, None])[:, :, :rank_of_part]
            right = right[:, :rank_of_part]
            right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
            second[:, :, i, :rank_of_part], first[i, :, :rank_of_part] = left, right
            slope -= (left @ right - before) @ hessian[span]
    factors = Factors(first.flatten(1, 2), second.flatten(2))
    if blocks > 1:
        factors = _refitted(factors, target, hessian)
    else:
        factors = factors._replace(second=factors.second / scale.view(1, -1, 1))
    return factors


def _refitted(factors: Factors, target: Tensor, hessian: Tensor) -> Factors:
    """With the `second` that is best for this `first`: least squares, of each output by itself."""
    blocks = len(factors.first)
    parts = factors.first.unflatten(1, (blocks, -1)).transpose(0, 1)  # [of outputs, of inputs, …]
    into = torch.stack([torch.block_diag(*part) for part in parts])  # [blocks, blocks · rank, in]
    gram = into @ hessian @ into.transpose(1, 2)
    cross = target.double().unflatten(0, (blocks, -1)) @ into.transpose(1, 2)
    return factors._replace(second=cross @ torch.linalg.pinv(gram, hermitian=True))


def _positive_root(rows: Tensor | None, size: int) -> Tensor:
    """√D, with outputs that are worth nothing worth a little: they are wanted, too."""
    if rows is None:
        return torch.ones(size, dtype=torch.float64)
    worth = rows.double()
    return worth.clamp_min(1e-6 * worth.mean().clamp_min(1e-30)).sqrt()
