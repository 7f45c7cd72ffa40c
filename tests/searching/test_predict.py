"""What is expected of combinations, from what was measured."""

import itertools
import math

import pytest

from vitcompress.searching.predict import Measured, predicted
from vitcompress.searching.space import Combination

COSTS = ((1.0, 0.9, 0.7), (1.0, 0.5), (1.0, 0.8))
LOSSES = ((0.0, 0.01, 0.04), (0.0, 0.02), (0.0, 0.005))
EVERY = list(itertools.product(range(3), range(2), range(2)))
SINGLES = [each for each in EVERY if sum(map(bool, each)) <= 1]


def measured(combination: Combination, interaction: float = 1.0) -> Measured:
    cost = math.prod(c[n] for c, n in zip(COSTS, combination, strict=True))
    loss = sum(each[n] for each, n in zip(LOSSES, combination, strict=True))
    several = sum(map(bool, combination)) > 1
    return Measured(combination, cost, {"kl": loss * (interaction if several else 1)})


def test_losses_add_up_and_costs_multiply() -> None:
    known = [measured(each) for each in SINGLES]
    for each in EVERY:
        found, true = predicted(known, each), measured(each)
        assert found is not None
        assert found.cost == pytest.approx(true.cost)
        assert found.losses["kl"] == pytest.approx(true.losses["kl"])


def test_what_was_built_corrects_what_is_like_it() -> None:
    known = [measured(each, 3.0) for each in SINGLES]
    target = (2, 1, 1)
    errors = []
    for built in ([], [(1, 1, 0)], [(1, 1, 0), (2, 1, 0)], [(1, 1, 0), (2, 1, 0), (1, 1, 1)]):
        found = predicted([*known, *(measured(each, 3.0) for each in built)], target)
        assert found is not None
        errors.append(abs(math.log(found.losses["kl"] / measured(target, 3.0).losses["kl"])))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.4 * errors[0]


def test_what_was_measured_is_known() -> None:
    known = [measured(each, 2.0) for each in [*SINGLES, (1, 1, 1)]]
    assert predicted(known, (1, 1, 1)) == known[-1]


def test_nothing_is_expected_of_changes_that_were_not_measured() -> None:
    known = [measured(each) for each in SINGLES if each != (2, 0, 0)]
    assert predicted(known, (2, 1, 0)) is None
    assert predicted(known, (1, 1, 0)) is not None
