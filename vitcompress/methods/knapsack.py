"""Exact choices under a budget: the multiple-choice knapsack."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """One way to treat an item: its `weight`, a whole number ≥ 0, and its `cost`."""

    weight: int
    cost: float


_Chain = tuple[int, "_Chain"] | None  # the options taken, the last first


def solve_knapsack(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """The option of each item that make the total cost least while the weights fit `budget`.

    Exact: states of growing prefixes of items are kept while no other state is lighter and as cheap
    (Nemhauser and Ullmann's dominance), and a state is dropped whose cost, with a lower bound for
    the items to come, exceeds that of a known solution. The bound is the Lagrangian relaxation,
    which for such problems is nearly tight. Ties go to the first options.

    Returns:
        The index of the option of each item, or None when nothing fits.
    """
    if sum(min(o.weight for o in options) for options in items) > budget:
        return None
    price, known = _relaxed(items, budget)
    bounds = [0.0]  # of the reduced costs of the last items
    for options in reversed(items):
        bounds.append(bounds[-1] + min(o.cost + price * o.weight for o in options))
    bounds.reverse()
    lightest = [0]
    for options in reversed(items):
        lightest.append(lightest[-1] + min(o.weight for o in options))
    lightest.reverse()
    slack = 1e-12 * (1 + abs(known) + price * budget)  # of rounding in the bound
    front: list[tuple[int, float, _Chain]] = [(0, 0.0, None)]
    for place, options in enumerate(items, 1):
        runs = [
            [(w + o.weight, c + o.cost, (index, chain)) for w, c, chain in front]
            for index, o in enumerate(options)
        ]
        least = float("inf")
        front = []
        for weight, cost, chain in heapq.merge(*runs, key=lambda state: state[:2]):
            room = budget - weight - lightest[place]
            bound = cost + bounds[place] - price * (budget - weight)
            if cost < least and room >= 0 and bound <= known + slack:
                front.append((weight, cost, chain))
                least = cost
    last: _Chain = min(front, key=lambda state: state[1])[2]
    chosen: list[int] = []
    while last is not None:
        chosen.append(last[0])
        last = last[1]
    return chosen[::-1]


def _relaxed(items: Sequence[Sequence[Option]], budget: int) -> tuple[float, float]:
    """A price per unit of weight near the best one, and the cost of a good solution that fits."""

    def at(price: float) -> list[Option]:
        return [min(each, key=lambda o: (o.cost + price * o.weight, o.weight)) for each in items]

    def fits(picked: list[Option]) -> bool:
        return sum(o.weight for o in picked) <= budget

    low, high = 0.0, 1e-12
    if fits(at(low)):
        return 0.0, _filled(items, at(low), budget)
    while not fits(at(high)) and high < 1e30:
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(at(middle)) else (middle, high)
    picked = at(high)
    if not fits(picked):  # costs that no price outweighs: the lightest do fit
        picked = [min(each, key=lambda o: (o.weight, o.cost)) for each in items]
    return high, _filled(items, picked, budget)


def _filled(items: Sequence[Sequence[Option]], picked: list[Option], budget: int) -> float:
    """The cost when what room is left goes, one change at a time, to what saves most."""
    picked, room = list(picked), budget - sum(o.weight for o in picked)
    while True:
        changes = [
            (old.cost - new.cost, place, new)
            for place, (old, each) in enumerate(zip(picked, items, strict=True))
            for new in each
            if new.weight - old.weight <= room and new.cost < old.cost
        ]
        if not changes:
            return sum(o.cost for o in picked)
        _, place, new = max(changes, key=lambda change: change[:2])
        room -= new.weight - picked[place].weight
        picked[place] = new
