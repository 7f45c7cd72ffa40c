"""Model folding: hidden units that compute nearly the same become one (2502.10216).

A unit is a row of the layer before it, and what is read of it the size of its column in the layer
behind. When units join, the row of all is the mean of theirs, each weighted by its reader, and
their columns are added. That costs Σ mass × ‖row − mean‖²; Ward's method joins, again and again,
the two groups whose joining adds least to it, so that the groups of all counts lie within each
other. No data are needed.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


class Folding(NamedTuple):
    """`order` [units]: the units as they join others; the last is what all have become. `into`
    [units]: the unit that each joins. `steps` [units]: what each adds to the cost, float64; the
    last when nothing stays."""

    order: Tensor
    into: Tensor
    steps: Tensor


def fold(rows: Tensor, masses: Tensor) -> Folding:
    """Join the units of `rows` [units, n], which are read with `masses` [units], one by one."""
    rows, masses = rows.double(), _positive(masses)
    mean = masses @ rows / masses.sum()
    costs = torch.cdist(rows, rows).square() / (1 / masses + 1 / masses[:, None])
    order, into, steps = _ward(costs.numpy(), masses.numpy().copy())
    steps.append(float(masses.sum() * mean.square().sum()))
    found = torch.tensor(order), torch.tensor(into), torch.tensor(steps, dtype=torch.float64)
    return Folding(*found)


def _ward(costs: Matrix, masses: Matrix) -> tuple[list[int], list[int], list[float]]:
    """As `Folding`, but for the last step, from what it costs to join any two, which is overwritten
    as the masses are. (In numpy, whose small steps take a tenth of torch's time.)"""
    np.fill_diagonal(costs, np.inf)
    nearest, least = costs.argmin(1), costs.min(1)
    order, into, steps = list[int](), list(range(len(masses))), list[float]()
    for _ in range(len(masses) - 1):
        unit = int(least.argmin())
        # Costs only rise as units join, so what was the least is a bound until it is looked at.
        while costs[unit, nearest[unit]] > least[unit]:
            nearest[unit], least[unit] = costs[unit].argmin(), costs[unit].min()
            unit = int(least.argmin())
        goes, stays = sorted((unit, int(nearest[unit])), key=lambda each: float(masses[each]))
        order.append(goes)
        steps.append(float(least[unit]))
        into[goes] = stays
        joined = _joined(costs, masses, goes, stays)  # before the masses are one
        masses[stays] += masses[goes]
        costs[goes] = costs[:, goes] = least[goes] = np.inf
        costs[stays] = costs[:, stays] = joined
        nearest[stays], least[stays] = joined.argmin(), joined.min()
        nearer = joined < least
        nearest[nearer], least[nearer] = stays, joined[nearer]
    return [*order, *({*into} - {*order})], into, steps


def _joined(costs: Matrix, masses: Matrix, one: int, other: int) -> Matrix:
    """What it adds to join each with `one` and `other` together, [units] (Lance and Williams)."""
    both = (masses + masses[one]) * costs[one] + (masses + masses[other]) * costs[other]
    found = (both - masses * costs[one, other]) / (masses + masses[one] + masses[other])
    clamped: Matrix = np.maximum(found, 0.0)
    return clamped


def groups(order: Tensor, into: Tensor, size: int) -> Tensor:
    """The place, among the `size` units that stay, of that which each has become, [units]."""
    found, gone = torch.arange(len(order)), order[: len(order) - size]
    for unit in reversed(gone.tolist()):
        found[unit] = found[into[unit]]
    return torch.searchsorted(order[len(order) - size :].sort().values, found)


def averages(groups: Tensor, masses: Tensor) -> Tensor:
    """What makes the row of each group of those of its units, [groups, units], float64."""
    weighted = sums(groups) * _positive(masses)
    return weighted / weighted.sum(1, keepdim=True)


def sums(groups: Tensor) -> Tensor:
    """What makes the column of each group of those of its units, [groups, units], float64."""
    return F.one_hot(groups).T.double()


def _positive(masses: Tensor) -> Tensor:
    """`masses`, those of units that nobody reads at a hair above nothing."""
    masses = masses.double()
    return masses + torch.finfo(torch.float32).eps * masses.mean().clamp_min(1e-30)
