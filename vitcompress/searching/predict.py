"""What a combination will cost and lose, from what was measured.

Losses of single stages add up while they are small, and costs multiply. How far that is from what
combinations really lose and cost is measured too: each one that was built corrects the prediction
of those that are like it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitcompress.searching.space import Combination, alone

_SMOOTH = 0.05  # of the largest loss, added to all before their ratios: a few images tell no less
_NEAR = 2  # the power of the share of equal choices that a correction counts by
_PRIOR = 0.1  # what no correction counts


@dataclass(frozen=True)
class Measured:
    """Of a combination: its `cost`, as a share of the dense model's, and its `losses` by limit."""

    combination: Combination
    cost: float
    losses: Mapping[str, float]


def predicted(known: Sequence[Measured], combination: Combination) -> Measured | None:
    """What is expected of `combination`; None where a single change that is in it, or the start of
    the search, was not measured."""
    found = {each.combination: each for each in known}
    plain = _summed(found, combination)
    if plain is None or combination in found:
        return found.get(combination)
    cost = list[tuple[float, float]]()
    losses: dict[str, list[tuple[float, float]]] = {name: [] for name in plain.losses}
    smooth = {name: _SMOOTH * max(each.losses[name] for each in known) for name in losses}
    for each in known:
        own = _summed(found, each.combination) if _changes(each.combination) > 1 else None
        if own is None:
            continue
        weight = _likeness(each.combination, combination) ** _NEAR
        cost.append((weight, math.log(each.cost / own.cost)))
        for name, loss in each.losses.items():
            least = smooth[name] or 1.0
            ratio = (max(loss, 0.0) + least) / (max(own.losses[name], 0.0) + least)
            losses[name].append((weight, math.log(ratio)))
    return Measured(
        combination,
        plain.cost * _factor(cost),
        {name: loss * _factor(losses[name]) for name, loss in plain.losses.items()},
    )


def _summed(found: Mapping[Combination, Measured], combination: Combination) -> Measured | None:
    """The changes of single stages put together."""
    start = found.get((0,) * len(combination))
    singles = [
        found.get(alone(combination, place)) for place, number in enumerate(combination) if number
    ]
    if start is None or any(each is None for each in singles):
        return None
    cost, losses = start.cost, dict(start.losses)
    for each in singles:
        assert each is not None
        cost *= each.cost / start.cost
        for name in losses:
            losses[name] += each.losses[name] - start.losses[name]
    return Measured(combination, cost, losses)


def _changes(combination: Combination) -> int:
    return sum(number > 0 for number in combination)


def _likeness(one: Combination, other: Combination) -> float:
    """The share of stages that are the same in both."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def _factor(corrections: Sequence[tuple[float, float]]) -> float:
    """The weighted mean of logarithms, drawn to none, as a factor."""
    total = _PRIOR + sum(weight for weight, _ in corrections)
    return math.exp(sum(weight * each for weight, each in corrections) / total)
