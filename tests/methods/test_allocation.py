"""Allocations against all that can be tried."""

from itertools import product

import numpy as np
import pytest

from vitcompress.methods.allocation import allocate


def problem(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Four parts with three to five options; losses need not rise as costs fall."""
    random = np.random.default_rng(seed)
    counts = random.integers(3, 6, 4)
    return (
        [random.random(n) for n in counts],
        [np.sort(random.integers(1, 50, n))[::-1].astype(float) for n in counts],
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_nothing_within_the_budget_is_better(seed: int, share: float) -> None:
    losses, costs = problem(seed)
    low, high = sum(c.min() for c in costs), sum(c.max() for c in costs)
    budget = low + share * (high - low) + 0.5  # between whole costs: rounding cannot matter
    found = allocate(losses, costs, budget)
    assert found is not None
    ways = list(product(*(range(len(loss)) for loss in losses)))
    total = {w: sum(values[i] for values, i in zip(costs, w, strict=True)) for w in ways}
    lost = {w: sum(values[i] for values, i in zip(losses, w, strict=True)) for w in ways}
    assert total[tuple(found)] <= budget
    assert lost[tuple(found)] == pytest.approx(min(lost[w] for w in ways if total[w] <= budget))


def test_only_the_cheapest_may_fit() -> None:
    losses, costs = [np.array([0.0, 1.0])] * 2, [np.array([5.0, 2.0])] * 2
    assert allocate(losses, costs, 4.0) == [1, 1]
    assert allocate(losses, costs, 3.9) is None
    assert allocate(losses, costs, 10.0) == [0, 0]


def test_equal_curves_are_narrowed_alike() -> None:
    removed = np.linspace(0, 1, 21)
    found = allocate([removed**2] * 6, [100 * (1 - removed)] * 6, 301)
    assert found == [10] * 6
