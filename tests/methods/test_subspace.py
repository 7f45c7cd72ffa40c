"""Bases of heads and of the stream: exact when whole, best of their rank when cut."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompress.methods.subspace import (
    Affine,
    NormedHeads,
    query_key_basis,
    selected_norm,
    stream_basis,
    stream_map,
    value_basis,
)


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


def test_a_turned_stream_is_normed_alike() -> None:
    x = draw(50, 12) @ draw(12, 12, seed=1) + 3
    centred = x - x.mean(1, keepdim=True)
    basis = stream_basis(centred.T @ centred)
    assert torch.allclose(basis.T @ basis, torch.eye(11).double(), atol=1e-12)
    assert basis.sum(0).abs().max() < 1e-12
    whole = stream_map(basis, 12)
    z = x @ whole.T
    assert z.mean(1).abs().max() < 1e-12
    normed = F.layer_norm(x, (12,), eps=1e-3)
    assert torch.allclose(F.layer_norm(z, (12,), eps=1e-3), normed @ whole.T, atol=1e-12)
    assert torch.allclose(F.layer_norm(z, (12,), eps=1e-3) @ whole, normed, atol=1e-12)


@pytest.mark.parametrize("width", [3, 7])
def test_a_narrower_stream_keeps_variance_and_drops_least(width: int) -> None:
    x = draw(50, 12) @ draw(12, 12, seed=1) + 3
    centred = x - x.mean(1, keepdim=True)
    basis = stream_basis(centred.T @ centred)
    z = x @ stream_map(basis, width).T
    assert z.shape == (50, width)
    assert z.mean(1).abs().max() < 1e-12
    kept = centred @ basis[:, : width - 1]
    assert torch.allclose(z.square().mean(1), kept.square().sum(1) / 12)
    for seed in range(5):
        other, _ = torch.linalg.qr(draw(12, width - 1, seed=seed))
        assert kept.square().sum() >= (centred @ other).square().sum()


def heads_of(q: Tensor, k: Tensor) -> NormedHeads:
    ones = torch.ones(*q.shape[:2], 1, dtype=torch.float64)
    query, centred = torch.cat([q, ones], 2), k - k.mean(1, keepdim=True)
    return NormedHeads(query.mT @ query, centred.mT @ centred, k.mT @ k)


@pytest.mark.parametrize("centred", [True, False])
def test_a_norm_of_all_dimensions_stays(centred: bool) -> None:
    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (8,)) if centred else F.rms_norm(x, (8,))

    q, k = norm(draw(2, 60, 8)), norm(draw(2, 60, 8, seed=1) + 1)
    query, key = Affine(draw(8, seed=2), draw(8, seed=3)), Affine(draw(8, seed=4), draw(8, seed=5))
    found = selected_norm(heads_of(q, k), query, key, torch.arange(8), centred, with_bias=True)
    before = (q * query.weight + query.bias) @ (k * key.weight).mT
    after = (q * found.weight + found.bias) @ k.mT
    assert torch.allclose(before.softmax(-1), after.softmax(-1), atol=1e-3)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_selected_norm_comes_nearer_than_the_weights_there_were(with_bias: bool) -> None:
    q = F.layer_norm(draw(2, 400, 8) @ draw(8, 8, seed=9), (8,))
    k = F.layer_norm(draw(2, 400, 8, seed=1) @ draw(8, 8, seed=8), (8,))
    query = Affine(draw(8, seed=2), draw(8, seed=3) * with_bias)
    key, kept = Affine(draw(8, seed=4), torch.zeros(8).double()), torch.tensor([0, 2, 3, 5, 6])
    found = selected_norm(heads_of(q, k), query, key, kept, centred=True, with_bias=with_bias)

    def logits(q: Tensor, k: Tensor, query: Affine, weight: Tensor) -> Tensor:
        k = k * weight
        return (q * query.weight + query.bias) @ (k - k.mean(1, keepdim=True)).mT

    wanted = logits(q, k, query, key.weight)
    fewer = [F.layer_norm(x[..., kept], (5,)) for x in (q, k)]
    plain = Affine(query.weight[kept], query.bias[kept])
    was = logits(fewer[0], fewer[1], plain, key.weight[kept])
    now = logits(fewer[0], fewer[1], found, torch.ones(5).double())
    assert (now - wanted).square().mean() < 0.9 * (was - wanted).square().mean()
    if not with_bias:
        assert (found.bias == 0).all()
