"""Which weights of a layer become zero: patterns, saliencies, and masks of whole cells.

A pattern divides the weights [out, in] of a layer into cells, which live or die as a whole: single
weights, or blocks of [rows, columns]. An n:m pattern keeps n of each m neighbours along the inputs,
the axis that a matrix product sums over; other patterns keep a share of all cells, the density.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .patterns import Pattern

_COLUMNS = 64  # swept together, before their errors reach the columns to come
_BRIEF = 15  # steps of conjugate gradients between rounds
_SUBSETS = 128  # of a group, at most, that are all tried


def cells(values: Tensor, cell: tuple[int, int]) -> Tensor:
    """The sums of `values` [out, in] over each cell, [cells down, cells across].

    Edges count as filled up with zeros to whole cells, here and in `block_scores`.
    """
    high, wide = cell
    values = F.pad(values, (0, -values.shape[1] % wide, 0, -values.shape[0] % high))
    total: Tensor = values.unflatten(0, (-1, high)).unflatten(2, (-1, wide)).sum((1, 3))
    return total


def block_scores(weight: Tensor, inverse: Tensor, cell: tuple[int, int]) -> Tensor:
    """The least error that removing each block alone leaves: tr(W_b ([H⁻¹]_bb)⁻¹ W_bᵀ).

    The optimal brain surgeon's saliency of several weights at once. `weight` [out, in]; `inverse`
    [in, in], of the Hessian. Returns [cells down, cells across].
    """
    high, wide = cell
    edge = -len(inverse) % wide
    inverse = torch.block_diag(inverse, torch.eye(edge, dtype=inverse.dtype))
    padded = F.pad(weight.double(), (0, edge, 0, -len(weight) % high))
    across = padded.unflatten(1, (-1, wide))  # [out, blocks, wide]
    corners = torch.stack(
        [inverse[i : i + wide, i : i + wide] for i in range(0, len(inverse), wide)]
    )
    solved = torch.linalg.solve(corners, across.permute(1, 2, 0)).permute(2, 0, 1)
    total: Tensor = (across * solved).sum(-1).unflatten(0, (-1, high)).sum(1)
    return total


def keep(values: Tensor, pattern: Pattern, density: float, by_row: bool = False) -> Tensor:
    """The cells that stay, bool like `values` (scores of cells): those with the largest scores.

    n:m patterns keep n of each group; others a share `density` of all cells, or of each row's.
    """
    if pattern.group:
        grouped = values.unflatten(1, (-1, pattern.group))
        chosen = grouped.topk(pattern.kept, -1).indices
        mask = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, chosen, True)
        return mask.flatten(1)
    pools = values if by_row else values.flatten()[None]
    chosen = pools.topk(round(density * pools.shape[1]), -1).indices
    return torch.zeros_like(pools, dtype=torch.bool).scatter_(-1, chosen, True).view_as(values)


def weight_mask(mask: Tensor, cell: tuple[int, int], shape: torch.Size) -> Tensor:
    """A mask of cells for each weight, bool of `shape` [out, in]."""
    whole = mask.repeat_interleave(cell[0], 0).repeat_interleave(cell[1], 1)
    return whole[: shape[0], : shape[1]]


def thinned(
    weight: Tensor, hessian: Tensor, pattern: Pattern, density: float, rounds: int = 6
) -> Tensor:
    """The cells that stay, for patterns without groups: bool [cells down, cells across].

    The cells go in rounds, to density^(1/rounds), density^(2/rounds), …; those of the least optimal
    brain surgeon's saliency first. Between the rounds the weights that are left are refitted, so
    that the next saliencies know what has gone.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    found, target = weight.double(), weight.double() @ hessian
    for done in range(1, rounds + 1):
        values = block_scores(found, inverse, pattern.cell)
        left = keep(values, pattern, density ** (done / rounds))
        if done < rounds:
            mask = weight_mask(left, pattern.cell, weight.shape)
            found = reconstructed(found, hessian, target, mask, _BRIEF)
    return left


def sweep(weight: Tensor, hessian: Tensor, pattern: Pattern) -> Tensor:
    """The weights that stay in an n:m pattern, bool [out, in], each group chosen with weights that
    already make good what was removed before.

    SparseGPT (2301.00774, algorithm 1): from the first input to the last, the error of each weight
    that is removed is spread over the weights to its right; what is removed next is judged by
    w² / [H⁻¹]_jj of the weights as they have become.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left, mask = weight.double().clone(), torch.zeros_like(weight, dtype=torch.bool)
    width = pattern.group
    step = max(1, _COLUMNS // width) * width
    columns = weight.shape[1]
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        errors = left.new_zeros(len(left), stop - start)
        for j in range(start, stop):
            if (j - start) % width == 0:
                part = slice(j, min(j + width, stop))
                value = left[:, part].square() / factor.diagonal()[part].square()
                mask[:, part] = keep(value, pattern, 1)
            error = left[:, j] * ~mask[:, j] / factor[j, j]
            left[:, j:stop] -= error[:, None] * factor[j, j:stop]
            errors[:, j - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return mask


def refined_groups(
    weight: Tensor, hessian: Tensor, target: Tensor, pattern: Pattern, sweeps: int
) -> Tensor:
    """Better weights of an n:m pattern, from `weight` which has it: descent by whole groups.

    Group by group, all rows at once, the n inputs and their weights become the best there are while
    the other groups stay: of all choices of n of m, each with its exact least squares weights. So
    ½ tr(W H Wᵀ) − tr(W Tᵀ) never grows. Groups with too many choices stay as they are.

    Args:
        weight: [out, in], with at most n weights in each group.
        hessian: H [in, in].
        target: T [out, in]; W₀H where the outputs of weights W₀ are wanted.
        pattern: n:m.
        sweeps: how often all groups are taken.
    """
    subsets = list(
        itertools.islice(itertools.combinations(range(pattern.group), pattern.kept), _SUBSETS + 1)
    )
    if len(subsets) > _SUBSETS or len(subsets) < 2:
        return weight
    chosen = torch.tensor(subsets)
    weight = weight.double().clone()
    slope = target.double() - weight @ hessian
    for _ in range(sweeps):
        for start in range(0, weight.shape[1], pattern.group):
            part = slice(start, start + pattern.group)
            corner = hessian[part, part]
            wanted = slope[:, part] + weight[:, part] @ corner
            # The gain of a choice S is ½ bᵀ H_SS⁻¹ b with b the wanted slope on S.
            inverses = torch.linalg.inv(corner[chosen[:, :, None], chosen[:, None, :]])
            sides = wanted[:, chosen]  # [out, choices, n]
            solved = torch.einsum("rcn,cnk->rck", sides, inverses)
            best = (sides * solved).sum(-1).argmax(1)
            rows = torch.arange(len(weight))
            fresh = torch.zeros_like(wanted).scatter_(1, chosen[best], solved[rows, best])
            slope -= (fresh - weight[:, part]) @ hessian[part]
            weight[:, part] = fresh
    return weight


def gathered(values: Tensor, pattern: Pattern, rounds: int) -> Tensor:
    """An order of the inputs in which an n:m pattern keeps more of `values` [out, in].

    Pairs of inputs of different groups change places where that raises what the groups keep
    (channel permutation, 2110.15743), the best pairs first, each group once a round. Returns
    indices [in].
    """
    order, values = torch.arange(values.shape[1]), values.float()
    if pattern.kept == pattern.group:
        return order
    for _ in range(rounds):
        now = values[:, order]
        gain = _swap_gains(now, pattern)
        least = 1e-6 * float(now.sum()) / len(order)
        used: set[int] = set()
        best = gain.flatten().topk(4 * len(order))
        for value, pair in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            one, other = divmod(pair, len(order))
            groups = {one // pattern.group, other // pattern.group}
            if value > least and not groups & used:
                order[[one, other]] = order[[other, one]]
                used |= groups
        if not used:
            break
    return order


def _swap_gains(values: Tensor, pattern: Pattern) -> Tensor:
    """How much more an n:m pattern keeps of `values` when two inputs change places, [in, in]."""
    grouped = values.unflatten(1, (-1, pattern.group))
    held = grouped.topk(pattern.kept, -1).values.sum((0, 2)).repeat_interleave(pattern.group)
    after = torch.empty(values.shape[1], values.shape[1])
    for place in range(values.shape[1]):
        group, inside = divmod(place, pattern.group)
        others = torch.cat([grouped[:, group, :inside], grouped[:, group, inside + 1 :]], 1)
        top = others.topk(pattern.kept, -1).values
        # With a newcomer the group keeps the others' n − 1 largest, and the newcomer or the n-th.
        after[place] = top[:, :-1].sum() + torch.maximum(top[:, -1:], values).sum(0)
    gain: Tensor = after + after.T - held[:, None] - held
    by_group = gain.unflatten(0, (-1, pattern.group)).unflatten(2, (-1, pattern.group))
    by_group.diagonal(dim1=0, dim2=2).zero_()  # within a group all orders are alike
    return gain


def reconstructed(
    weight: Tensor, hessian: Tensor, target: Tensor, mask: Tensor, steps: int = 40
) -> Tensor:
    """The weights within `mask` that minimise ½ tr(W H Wᵀ) − tr(W Tᵀ), from `weight`.

    Conjugate gradients for all rows at once, preconditioned by the diagonal of H; each row has
    steps of its own. Stops early where nothing is left to gain. Arguments as of
    `refined_groups`; `mask` bool [out, in]. Returns float64 [out, in].
    """
    found = weight.double() * mask
    left = (target.double() - found @ hessian) * mask
    scale = hessian.diagonal().reciprocal()
    ready = left * scale
    direction, energy = ready.clone(), (left * ready).sum(1)
    limit = 1e-20 * energy.clamp_min(1e-300)
    for _ in range(steps):
        moved = (direction @ hessian) * mask
        curvature = (direction * moved).sum(1)
        length = torch.where(curvature > 0, energy / curvature.clamp_min(1e-300), 0)[:, None]
        found += length * direction
        left -= length * moved
        ready = left * scale
        fresh = (left * ready).sum(1)
        if bool((fresh <= limit).all()):
            break
        direction = ready + (fresh / energy.clamp_min(1e-300))[:, None] * direction
        energy = fresh
    return found


def row_errors(change: Tensor, hessian: Tensor) -> Tensor:
    """‖ΔW x‖² of each row, [out]: `change` [out, in], `hessian` the mean of x xᵀ."""
    change = change.double()
    return ((change @ hessian) * change).sum(1)


def erdos_renyi_densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """By layer, the density that makes its weights proportional to its inputs plus outputs.

    The Erdős–Rényi kernel that random pruning spreads its weights by (Evci et al., 1911.11134):
    `density` of all weights stays. Layers that would get more than they have are dense, and the
    others share the rest.
    """
    weights = {name: math.prod(shape) for name, shape in shapes.items()}
    scores, found = {name: float(sum(shape)) for name, shape in shapes.items()}, dict[str, float]()
    room = density * sum(weights.values())
    while scores:
        scale = room / sum(scores.values())
        full = [name for name, score in scores.items() if scale * score > weights[name]]
        if not full:
            return found | {name: scale * score / weights[name] for name, score in scores.items()}
        for name in full:
            found[name] = 1.0
            room -= weights[name]
            del scores[name]
    return found
