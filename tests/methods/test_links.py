"""Which links of attention are kept: against brute force, and against what is best of its rank."""

import pytest
import torch
from torch import Tensor

from vitcompress.methods.links import (
    Maps,
    Moments,
    channels,
    cost,
    kept_links,
    low_rank,
    strongest,
)

HEADS, TOKENS, DIMS = 2, 12, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor]:
    """Queries and keys [1, h, N, d] of one image, with means and unequal directions."""
    shape = (1, HEADS, TOKENS, DIMS)
    mixed = [draw(HEADS, DIMS, DIMS, seed=seed) for seed in (1, 2)]
    return draw(*shape, seed=3) @ mixed[0] + 2, draw(*shape, seed=4) @ mixed[1] - 1


def error(q: Tensor, k: Tensor, maps: Maps) -> Tensor:
    """By head, the squared error of the logits, but for what all keys of a query share."""
    lost = q @ k.mT - (q @ maps.queries) @ (k @ maps.keys).mT
    return (lost - lost.mean(-1, keepdim=True)).square().sum((0, -2, -1))


@pytest.mark.parametrize("kept", [1, 3, 7])
def test_as_many_links_as_asked_and_no_stronger_one_is_lost(kept: int) -> None:
    scores = draw(2, 3, 5, 7).round(decimals=0)  # with ties
    mask = strongest(scores, kept)
    assert (mask.sum(-1) == kept).all()
    for row, chosen in zip(scores.flatten(0, 2), mask.flatten(0, 2), strict=True):
        assert row[chosen].sort().values.tolist() == row.sort().values[-kept:].tolist()


@pytest.mark.parametrize("find", [low_rank, channels])
def test_all_dimensions_tell_what_the_logits_tell(find: type, drawn: tuple[Tensor, Tensor]) -> None:
    q, k = drawn
    maps = find(Moments.of(q, k), DIMS)
    assert torch.allclose((q @ maps.queries) @ (k @ maps.keys).mT, q @ k.mT, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_no_maps_of_this_rank_are_nearer_to_the_logits(
    rank: int, drawn: tuple[Tensor, Tensor]
) -> None:
    q, k = drawn
    moments = Moments.of(q, k)
    strengths = torch.linalg.svdvals(q @ (k - k.mean(-2, keepdim=True)).mT)
    best = strengths[0, :, rank:].square().sum(-1)  # Eckart–Young
    assert torch.allclose(error(q, k, low_rank(moments, rank)), best)
    assert (error(q, k, channels(moments, rank)) >= best).all()


def test_the_channels_that_vary_most_are_chosen() -> None:
    q, k = torch.ones(1, 1, 50, 4).double(), draw(1, 1, 50, 4)
    k *= torch.tensor([3.0, 1.0, 0.01, 2.0])
    k[..., 2] += 100  # the same for all keys of a query: of no account
    q[..., 1] = 0.1
    maps = channels(Moments.of(q, k), 2)
    assert maps.queries[0].nonzero().tolist() == [[0, 0], [3, 1]]
    assert torch.equal(maps.queries, maps.keys)


def test_moments_add_up_over_images(drawn: tuple[Tensor, Tensor]) -> None:
    q, k = (torch.cat([each, 2 * each]) for each in drawn)
    parts = [Moments.of(q[i : i + 1], k[i : i + 1]) for i in (0, 1)]
    for whole, one, other in zip(Moments.of(q, k), *parts, strict=True):
        assert torch.allclose(whole, one + other)


def test_costs_count_the_products() -> None:
    keys, dims, rank = 100, 64, 8
    dense = 2 * keys * keys * dims
    links = keys * 25
    assert kept_links(0.25, keys) == 25
    assert kept_links(0.001, keys) == 1
    values = links * dims
    exact = keys * keys * dims + values
    picked = keys * keys * rank + links * dims + values
    assert cost(0.25, keys, dims) == pytest.approx(exact / dense)
    assert cost(0.25, keys, dims, "channels", rank) == pytest.approx(picked / dense)
    mapped = picked + 2 * keys * dims * rank
    assert cost(0.25, keys, dims, "low_rank", rank) == pytest.approx(mapped / dense)
    assert cost(1.0, keys, dims) == 1
