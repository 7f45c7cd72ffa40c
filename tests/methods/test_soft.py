"""Soft merging: centres against plain loops, and mixtures against what they are said to be."""

import pytest
import torch
from torch import Tensor

from vitcompress import registry
from vitcompress.methods.centres import farthest, rectangles
from vitcompress.methods.selection import unit
from vitcompress.methods.tokens import (
    Mixture,
    Tokens,
    combine,
    gathered,
    method_of,
    origins,
    places,
)
from vitcompress.terms import MERGING

N, KEEP, GRID = 15, 7, (3, 5)
METHODS = [name for name in registry.names(MERGING) if method_of(name).mixtures]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_tokens(images: int = 3) -> Tokens:
    importance = draw(images, N, seed=2).exp()
    return Tokens(unit(draw(images, N, 8)), torch.ones(images, N), importance, GRID)


def chosen(method: str, tokens: Tokens, keep: int = KEEP) -> Mixture:
    choice = method_of(method).choose(tokens, keep)
    assert isinstance(choice, Mixture)
    return choice


@pytest.mark.parametrize("count", range(1, N + 1))
def test_rectangles_tile_the_grid(count: int) -> None:
    areas = rectangles(count, GRID)
    assert areas.shape == (count, N)
    assert torch.allclose(areas.sum(1), torch.ones(count))
    if count == N:
        assert torch.equal(areas, torch.eye(N))


def test_rectangles_of_whole_patches_are_their_means() -> None:
    x = draw(4 * 6, 2)
    blocks = x.view(2, 2, 3, 2, 2).mean((1, 3)).flatten(0, 1)
    assert torch.allclose(rectangles(6, (4, 6)) @ x, blocks, atol=1e-6)


def test_the_farthest_points_are_those_of_a_plain_loop() -> None:
    points, weight = unit(draw(2, N, 8)), draw(2, N, seed=1).exp()
    found = farthest(points, weight, KEEP)
    for image in range(2):
        at, heavy = points[image], weight[image].tolist()
        taken = [max(range(N), key=lambda i: heavy[i])]
        while len(taken) < KEEP:
            left = [i for i in range(N) if i not in taken]
            taken.append(
                max(left, key=lambda i: heavy[i] * min(1 - float(at[i] @ at[j]) for j in taken))
            )
        assert found[image].tolist() == taken


def test_no_point_is_chosen_twice() -> None:
    same = unit(torch.ones(1, N, 4))
    found = farthest(same, torch.full((1, N), 1e-6), N)
    assert sorted(found[0].tolist()) == list(range(N))


@pytest.mark.parametrize("method", METHODS)
def test_all_of_every_token_goes_somewhere(method: str) -> None:
    tokens, x = some_tokens(), draw(3, N + 1, 5)
    choice = chosen(method, tokens)
    assert torch.allclose(choice.shares.sum(1), torch.ones(3, N))
    mixed, sizes = combine(x, tokens.sizes, choice, prefix=1)
    assert torch.allclose(sizes.sum(1), tokens.sizes.sum(1))
    assert torch.equal(mixed[:, 0], x[:, 0])
    for image in range(3):
        for slot in range(KEEP):
            share = choice.shares[image, slot] * tokens.importance[image]
            mean = (share[:, None] * x[image, 1:]).sum(0) / share.sum()
            assert torch.allclose(mixed[image, 1 + slot], mean, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_images(method: str) -> None:
    tokens = some_tokens()
    together = chosen(method, tokens).shares
    for image in range(3):
        parts = (t[image : image + 1] for t in (tokens.points, tokens.sizes, tokens.importance))
        assert torch.allclose(chosen(method, Tokens(*parts, GRID)).shares[0], together[image])


@pytest.mark.parametrize("method", METHODS)
def test_as_many_as_there_are_stay_what_they_are(method: str) -> None:
    """At a low temperature, where each token is alone at its centre."""
    tokens, x = some_tokens(), draw(3, N, 5)
    mixed, sizes = combine(x, tokens.sizes, chosen(method, tokens, N))
    where = places(chosen(method, tokens, N))
    assert torch.allclose(sizes, torch.ones(3, N), atol=1e-3)
    for image in range(3):
        assert sorted(where[image].tolist()) == list(range(N))
        assert torch.allclose(mixed[image, where[image]], x[image], atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_equal_tokens_give_no_nan(method: str) -> None:
    tokens = Tokens(unit(torch.ones(1, N, 8)), torch.ones(1, N), torch.ones(1, N), GRID)
    mixed, _ = combine(torch.full((1, N, 4), 2.0), tokens.sizes, chosen(method, tokens))
    assert torch.allclose(mixed, torch.full_like(mixed, 2.0))


def test_shares_are_a_softmax_over_centres() -> None:
    tokens = some_tokens()
    centres = tokens.points[:, [4, 9]]
    found = gathered(centres, tokens, temperature=0.5).shares
    likeness = (centres @ tokens.points.mT / 0.5).exp()
    assert torch.allclose(found, likeness / likeness.sum(1, keepdim=True), atol=1e-6)


def test_a_mixture_is_where_and_what_most_of_it_is() -> None:
    shares = torch.tensor([[[0.9, 0.4, 0.0], [0.1, 0.6, 1.0]]])
    choice = Mixture(shares, torch.ones(1, 3))
    assert places(choice, prefix=1).tolist() == [[0, 1, 2, 2]]
    assert origins(choice, prefix=1).tolist() == [[0, 1, 3]]
