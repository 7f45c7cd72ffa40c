"""The exact choice under a budget, against trying everything."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcompress.methods.knapsack import Option, solve_knapsack

options = st.lists(
    st.builds(Option, st.integers(0, 12), st.floats(0, 10).map(lambda x: round(x, 2))),
    min_size=1,
    max_size=4,
)


def brute_force(items: list[list[Option]], budget: int) -> float | None:
    fitting = [
        sum(o.cost for o in picked)
        for picked in itertools.product(*items)
        if sum(o.weight for o in picked) <= budget
    ]
    return min(fitting, default=None)


@given(items=st.lists(options, min_size=1, max_size=5), budget=st.integers(0, 50))
@settings(max_examples=300, deadline=None)
def test_it_finds_what_trying_everything_finds(items: list[list[Option]], budget: int) -> None:
    chosen, best = solve_knapsack(items, budget), brute_force(items, budget)
    if best is None:
        assert chosen is None
    else:
        assert chosen is not None
        picked = [each[i] for each, i in zip(items, chosen, strict=True)]
        assert sum(o.weight for o in picked) <= budget
        assert sum(o.cost for o in picked) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("fixed", [10**7, 10**12])
def test_weights_without_a_choice_change_nothing(fixed: int) -> None:
    for seed in range(50):
        draw = random.Random(seed)
        items = [
            [Option(draw.randint(1, 9), draw.random()) for _ in range(draw.randint(2, 4))]
            for _ in range(draw.randint(2, 5))
        ]
        budget = sum(draw.choice(each).weight for each in items)
        chosen = solve_knapsack([*items, [Option(fixed, 0.0)]], budget + fixed)
        assert chosen is not None
        picked = [each[i] for each, i in zip(items, chosen[:-1], strict=True)]
        assert sum(o.cost for o in picked) == pytest.approx(brute_force(items, budget))


def test_two_hundred_layers_of_unequal_sizes_are_no_trouble() -> None:
    items = [
        [
            Option((1009 + 37 * (i % 11)) * bits, (1 + i * 7 % 13) * (1 + i % 5 / 9) * 4.0**-bits)
            for bits in (2, 3, 4, 5, 6, 8)
        ]
        for i in range(200)
    ]
    most = sum(each[-1].weight for each in items)
    chosen = solve_knapsack(items, most * 5 // 8)
    assert chosen is not None
    used = sum(each[i].weight for each, i in zip(items, chosen, strict=True))
    assert 0.999 * most * 5 / 8 < used <= most * 5 / 8


def test_no_items_need_nothing() -> None:
    assert solve_knapsack([], 0) == []


def test_equal_curves_are_narrowed_alike() -> None:
    options = [Option(100 * (20 - i), (i / 20) ** 2) for i in range(21)]
    assert solve_knapsack([options] * 6, 6020) == [10] * 6
