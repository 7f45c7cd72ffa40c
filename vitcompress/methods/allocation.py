"""How much to take from each part, when each part's losses and costs are known."""

from collections.abc import Sequence

import numpy as np

_STEPS = 20_000


def allocate(
    losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], budget: float
) -> list[int] | None:
    """The option of each part that makes the summed loss least at a summed cost ≤ `budget`.

    Exact but for the rounding of costs to a 20,000th of the budget, by dynamic programming over
    the budget: the curves need not be convex.

    Args:
        losses: one array [options] a part.
        costs: likewise, none negative.
        budget: in the unit of the costs.

    Returns:
        The index of an option for each part, or None where even the cheapest cost more.
    """
    floor = sum(float(cost.min()) for cost in costs)
    if floor > budget:
        return None
    best_of_all = [int(loss.argmin()) for loss in losses]
    if sum(float(c[i]) for c, i in zip(costs, best_of_all, strict=True)) <= budget * (1 + 1e-9):
        return best_of_all
    unit = max((budget - floor) / _STEPS, np.finfo(float).tiny)
    room = _STEPS if budget > floor else 0
    best = np.zeros(room + 1)  # by how much of the room may be spent
    choices = []
    for loss, cost in zip(losses, costs, strict=True):
        extra = (cost - cost.min()) / unit
        steps = np.where(extra > room + 1, room + 1, np.ceil(extra - 1e-6)).astype(int)
        table = np.full((len(loss), room + 1), np.inf)
        for option, spent in enumerate(steps):
            if spent <= room:
                table[option, spent:] = best[: room + 1 - spent] + loss[option]
        choice = table.argmin(0)
        best = np.take_along_axis(table, choice[None], 0)[0]
        choices.append((choice, steps))
    left, found = room, []
    for choice, steps in reversed(choices):
        found.append(int(choice[left]))
        left -= int(steps[found[-1]])
    return found[::-1]
