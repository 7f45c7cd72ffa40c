"""Bases of heads: exact when whole, best of their rank when cut."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from vitcompress.methods.subspace import query_key_basis, value_basis


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def heads() -> tuple[Tensor, Tensor]:
    """Queries and keys of one head, [40, 6], with means and unequal directions."""
    return draw(40, 6) @ draw(6, 6, seed=1) + 2, draw(40, 6, seed=2) @ draw(6, 6, seed=3) - 1


def test_the_whole_basis_leaves_the_softmax_as_it_is(heads: tuple[Tensor, Tensor]) -> None:
    q, k = heads
    centred = k - k.mean(0)
    to_q, to_k, _ = query_key_basis(q.T @ q, centred.T @ centred)
    before, after = (q @ k.T).softmax(-1), ((q @ to_q) @ (k @ to_k).T).softmax(-1)
    assert torch.allclose(before, after, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_no_choice_of_dimensions_is_better(rank: int, heads: tuple[Tensor, Tensor]) -> None:
    q, k = heads
    k = k - k.mean(0)
    to_q, to_k, energy = query_key_basis(q.T @ q / 40, k.T @ k / 40)
    logits = q @ k.T
    error = (logits - (q @ to_q[:, :rank]) @ (k @ to_k[:, :rank]).T).square().mean()
    assert error.item() == pytest.approx(energy[rank:].sum().item())
    for chosen in combinations(range(6), rank):
        columns = list(chosen)
        selected = q[:, columns] @ k[:, columns].T
        assert error <= (logits - selected).square().mean()


def test_energies_fall(heads: tuple[Tensor, Tensor]) -> None:
    q, k = heads
    assert (query_key_basis(q.T @ q, k.T @ k)[2].diff() <= 0).all()
    assert (value_basis(q.T @ q, draw(8, 6), torch.eye(8).double())[2].diff() <= 0).all()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_values_are_cut_where_the_output_notices_least(rank: int) -> None:
    z, projection, root = draw(50, 6) @ draw(6, 6, seed=1), draw(8, 6, seed=2), draw(8, 8, seed=3)
    metric = root @ root.T
    turn, back, energy = value_basis(z.T @ z / 50, projection, metric)
    assert torch.allclose(turn @ back, torch.eye(6).double(), atol=1e-8)
    outputs = z @ projection.T
    error = outputs - (z @ turn[:, :rank]) @ (projection @ back.T)[:, :rank].T
    loss = ((error @ metric) * error).sum(1).mean()
    assert loss.item() == pytest.approx(energy[rank:].sum().item())
    for chosen in combinations(range(6), rank):
        columns = list(chosen)
        other = outputs - z[:, columns] @ projection[:, columns].T
        assert loss <= ((other @ metric) * other).sum(1).mean()


def test_dimensions_nobody_uses_are_no_trouble() -> None:
    gram = torch.diag(torch.tensor([1.0, 0.0, 2.0, 0.0]))
    for each in (*query_key_basis(gram, gram), *value_basis(gram, torch.ones(3, 4), torch.eye(3))):
        assert torch.isfinite(each).all()
