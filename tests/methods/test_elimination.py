"""Greedy elimination against the least-squares refit of what stays."""

import pytest
import torch
from torch import Tensor

from vitcompress.methods.elimination import eliminate

DAMPING = 1e-3


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    """A covariance [12, 12], a weight [5, 12] and a metric [5, 5]."""
    generator = torch.Generator().manual_seed(0)
    mixing, weight, root = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((12, 12), (5, 12), (5, 5))
    )
    return mixing @ mixing.T, weight, root @ root.T


def refitted_loss(
    covariance: Tensor, weight: Tensor, metric: Tensor, removed: Tensor, damping: float = DAMPING
) -> float:
    """½ tr(M E) of the error left when the removed inputs are predicted from the others."""
    size = len(covariance)
    kept = torch.tensor(
        [i for i in range(size) if i not in set(removed.tolist())], dtype=torch.long
    )
    damped = covariance + damping * covariance.diagonal().mean() * torch.eye(size).double()
    inner = damped[removed][:, removed]
    if len(kept):
        cross = damped[kept][:, removed]
        inner = inner - cross.T @ torch.linalg.solve(damped[kept][:, kept], cross)
    lost = weight[:, removed]
    return 0.5 * float(torch.trace(metric @ lost @ inner @ lost.T))


@pytest.mark.parametrize("group", [1, 3, 5])
def test_losses_are_those_of_the_least_squares_refit(
    group: int, problem: tuple[Tensor, Tensor, Tensor]
) -> None:
    order, losses = eliminate(*problem, group, DAMPING)
    assert sorted(order.tolist()) == list(range(12))
    assert len(losses) == -(-12 // group)
    for step, loss in enumerate(losses.tolist()):
        removed = order[: (step + 1) * group]
        assert loss == pytest.approx(refitted_loss(*problem, removed), rel=1e-8)


def test_losses_never_fall(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    _, losses = eliminate(*problem, 1)
    assert (losses.diff() >= 0).all()
    assert losses[0] > 0


def test_the_first_removed_costs_least(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    order, losses = eliminate(*problem, 1, DAMPING)
    each = [refitted_loss(*problem, torch.tensor([i])) for i in range(12)]
    assert order[0] == min(range(12), key=each.__getitem__)
    assert losses[0] == pytest.approx(min(each))


def test_inputs_that_others_explain_go_first(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    covariance, weight, metric = problem
    mixing = torch.cat([torch.eye(12), torch.eye(12)[:4] + torch.eye(12)[4:8]]).double()
    wide = torch.cat([weight, weight[:, :4]], 1)
    _, losses = eliminate(mixing @ covariance @ mixing.T, wide, metric, 1, 1e-12)
    assert losses[3] < 1e-9 * losses[-1]  # four inputs are sums of others
    assert losses[4] > 1e-6 * losses[-1]


def test_inputs_without_variance_are_no_trouble() -> None:
    order, losses = eliminate(torch.zeros(6, 6), torch.ones(2, 6), torch.eye(2), 4)
    assert len(order) == 6
    assert torch.isfinite(losses).all()
