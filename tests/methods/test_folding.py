"""Units that join others."""

import pytest
import torch

from vitcompress.methods.folding import averages, fold, groups, sums

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(12, 5, generator=GENERATOR, dtype=torch.float64)
MASSES = torch.rand(12, generator=GENERATOR, dtype=torch.float64) + 0.1


def test_costs_are_those_of_the_groups_and_rise() -> None:
    found = fold(ROWS, MASSES)
    assert sorted(found.order.tolist()) == list(range(12))
    assert (found.steps[:-1].diff() >= 0).all()
    spent = found.steps.cumsum(0)
    for size in range(1, 12):
        place = groups(found.order, found.into, size)
        assert set(place.tolist()) == set(range(size))
        means = averages(place, MASSES) @ ROWS
        lost = (MASSES * (ROWS - means[place]).square().sum(1)).sum()
        assert float(lost) == pytest.approx(float(spent[11 - size]), rel=1e-5)
        assert torch.equal(sums(place) @ torch.ones(12).double(), place.bincount().double())


def test_the_cheapest_pair_joins_first() -> None:
    found = fold(ROWS, MASSES)
    mass = MASSES[:, None] * MASSES / (MASSES[:, None] + MASSES)
    costs = mass * torch.cdist(ROWS, ROWS).square() + torch.diag(torch.full((12,), torch.inf))
    assert float(found.steps[0]) == pytest.approx(float(costs.min()), rel=1e-5)


def test_equal_units_and_units_that_nobody_reads_join_at_no_cost() -> None:
    rows, masses = torch.cat([ROWS, ROWS[:4]]), torch.cat([MASSES, MASSES[:4]])
    masses[7] = 0
    found = fold(rows, masses)
    assert found.steps[:5].sum() < 1e-5
    assert found.steps[5] > 1e-3
    assert len(groups(found.order, found.into, 11).unique()) == 11
