"""Schedules: shapes, budgets and the dynamic programme."""

import itertools
import math

import pytest

from vitcompress.methods import schedule
from vitcompress.methods.schedule import PUBLISHED, SHAPES


def half(tokens: int) -> int:
    return tokens // 2


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fall_and_get_cheaper_with_strength(shape: str) -> None:
    costs = []
    for strength in (0.5, 1.0, 2.0):
        kept = schedule.rounded_schedule(SHAPES[shape].kept(50, 6, strength), 50, half)
        assert all(a >= b for a, b in itertools.pairwise((50, *kept)))
        costs.append(sum(kept))
    assert costs[0] > costs[1] > costs[2]


def test_stepped_is_published_in_every_second_block() -> None:
    each, steps = SHAPES["published"].kept(50, 7, 1.5), SHAPES["stepped"].kept(50, 7, 1.5)
    assert steps[::2] == each[::2]
    assert steps[1::2] == each[:-1:2]


def test_rounding_respects_what_a_step_can_keep() -> None:
    assert schedule.rounded_schedule([10.0, 90.0, 3.2], 100, half) == (50, 50, 25)


def test_a_schedule_uses_its_budget() -> None:
    kept = schedule.at_cost(
        lambda t: schedule.rounded_schedule([100 - t, 100 - 2 * t], 100, lambda n: 1), sum, 150, 100
    )
    assert 148 <= sum(kept) <= 150
    assert schedule.at_cost(lambda t: (100,), sum, 200, 1) == (100,)


def test_published_schedules_fall_and_drop_before_they_merge() -> None:
    for dropped, merged in PUBLISHED.values():
        assert all(a >= b for a, b in zip(dropped, merged, strict=True))
        assert all(a >= b for a, b in itertools.pairwise(merged))


def test_the_dynamic_programme_finds_the_best_of_all() -> None:
    weights = (5.0, 1.0, 0.2)
    losses = [lambda share, w=w: -w * math.log(share) for w in weights]  # type: ignore[misc]
    grid = [12, 10, 8, 6, 4]

    def cost(block: int, tokens: int, kept: int) -> float:
        return tokens + 2.0 * kept

    def total(path: tuple[int, ...]) -> tuple[float, float]:
        steps = list(itertools.pairwise((12, *path)))
        spent = sum(cost(b, i, o) for b, (i, o) in enumerate(steps))
        return sum(losses[b](o / i) for b, (i, o) in enumerate(steps)), spent

    paths = [p for p in itertools.product(grid, repeat=3) if sorted(p, reverse=True) == list(p)]
    for limit in (80.0, 90.0, 100.0):
        found = schedule.cheapest_loss(losses, cost, 12, lambda n: 1, limit, grid)
        assert total(found)[1] <= limit
        # On the lower hull, which a multiplier can reach, nothing within the same cost is better.
        loss, spent = total(found)
        assert loss <= min(total(p)[0] for p in paths if total(p)[1] <= spent) + 1e-9


def test_loss_curves_rise_as_fewer_stay() -> None:
    curve = schedule.loss_curve({0.9: 0.1, 0.8: 0.05, 0.5: 1.0})
    assert curve(1.0) == 0.0
    assert curve(0.9) == pytest.approx(0.1)
    assert curve(0.8) == pytest.approx(0.1)  # made monotone
    assert curve(0.5) == pytest.approx(1.0)
    assert curve(0.3) > 1.0
