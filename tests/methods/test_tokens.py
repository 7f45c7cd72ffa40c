"""Methods by which some tokens stay: against a plain loop, and what must hold for all."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vitcompress import registry
from vitcompress.methods.merging import diffrate, ppt
from vitcompress.methods.readers import ReaderStatistics, normalised
from vitcompress.methods.selection import unit
from vitcompress.methods.tokens import (
    ATTENTION,
    Merge,
    Tokens,
    View,
    attention_paid,
    combine,
    method_of,
    places,
)
from vitcompress.model.modules.attention import attend
from vitcompress.terms import MERGING

N, KEEP = 17, 11
METHODS = [name for name in registry.names(MERGING) if not method_of(name).mixtures]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_tokens(images: int = 3, count: int = N) -> Tokens:
    return Tokens(
        points=unit(draw(images, count, 8)),
        sizes=1 + draw(images, count, seed=1).abs(),
        importance=draw(images, count, seed=2).softmax(1),
    )


def one(tokens: Tokens, image: int) -> Tokens:
    return Tokens(*(t[image : image + 1] for t in (tokens.points, tokens.sizes, tokens.importance)))


@pytest.mark.parametrize("method", METHODS)
def test_every_token_stays_or_goes_to_one_that_stays(method: str) -> None:
    choice = method_of(method).choose(some_tokens(), KEEP)
    both = torch.cat([choice.kept, choice.gone], 1)
    assert torch.equal(both.sort(1).values, torch.arange(N).expand(3, N))
    assert choice.kept.shape[1] == KEEP
    assert int(choice.target.min()) >= 0
    assert int(choice.target.max()) < KEEP


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_images(method: str) -> None:
    tokens, x = some_tokens(), draw(3, N, 5, seed=3)
    together, sizes = combine(x, tokens.sizes, method_of(method).choose(tokens, KEEP))
    for image in range(3):
        lone = one(tokens, image)
        alone, size = combine(
            x[image : image + 1], lone.sizes, method_of(method).choose(lone, KEEP)
        )
        assert torch.allclose(alone[0], together[image], atol=1e-6)
        assert torch.allclose(size[0], sizes[image], atol=1e-6)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"ppt"}))
def test_sizes_sum_to_what_they_were(method: str) -> None:
    tokens = some_tokens()
    _, sizes = combine(draw(3, N, 5), tokens.sizes, method_of(method).choose(tokens, KEEP))
    assert torch.allclose(sizes.sum(1), tokens.sizes.sum(1))


@pytest.mark.parametrize("method", METHODS)
def test_equal_tokens_give_no_nan(method: str) -> None:
    tokens = Tokens(unit(torch.ones(1, N, 8)), torch.ones(1, N), torch.full((1, N), 1 / N))
    x = torch.full((1, N, 4), 2.0)
    merged, _ = combine(x, tokens.sizes, method_of(method).choose(tokens, KEEP))
    assert torch.allclose(merged, torch.full_like(merged, 2.0))


@pytest.mark.parametrize("method", METHODS)
def test_the_fewest_that_can_stay_can(method: str) -> None:
    for count in (N, N + 1):
        least = method_of(method).fewest(count)
        assert method_of(method).choose(some_tokens(count=count), least).kept.shape[1] == least


def test_combine_is_the_matrix_form() -> None:
    x, sizes, weight = draw(1, 4, 3), torch.tensor([[1.0, 2, 3, 4]]), draw(1, 4).exp()
    choice = Merge(torch.tensor([[2, 0]]), torch.tensor([[1, 3]]), torch.tensor([[0, 0]]))
    matrix = torch.tensor([[0.0, 1, 1, 1], [1, 0, 0, 0]])
    merged, size = combine(x, sizes, choice)
    assert torch.allclose(size[0], matrix @ sizes[0])
    assert torch.allclose(merged[0], matrix @ (sizes[0, :, None] * x[0]) / size[0, :, None])
    weighted = Merge(choice.kept, choice.gone, choice.target, weight=weight)
    merged, size = combine(x, sizes, weighted)
    assert torch.allclose(
        merged[0], matrix @ (weight[0, :, None] * x[0]) / (matrix @ weight[0])[:, None], atol=1e-6
    )
    assert torch.allclose(size[0], matrix @ sizes[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_token_that_takes_nothing_in_stays_but_for_its_last_bits(method: str) -> None:
    tokens, x = some_tokens(), draw(3, N, 5)
    choice = method_of(method).choose(tokens, KEEP)
    merged, _ = combine(x, tokens.sizes, choice)
    for image in range(3):
        for slot in set(range(KEEP)) - set(choice.target[image].tolist()):
            kept = x[image, int(choice.kept[image, slot])]
            assert torch.allclose(merged[image, slot], kept, rtol=3e-7, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_places_say_where_tokens_are(method: str) -> None:
    choice = method_of(method).choose(some_tokens(), KEEP)
    now = places(choice, prefix=1)
    assert now.shape == (3, N + 1)
    for image in range(3):
        assert int(now[image, 0]) == 0
        for slot, token in enumerate(choice.kept[image].tolist()):
            assert int(now[image, 1 + token]) == 1 + slot
        for token, slot in zip(choice.gone[image], choice.target[image], strict=True):
            assert int(now[image, 1 + token]) == 1 + int(slot)


def test_tome_merges_the_most_similar_pairs() -> None:
    tokens = one(some_tokens(), 0)
    points = tokens.points[0]
    pairs = []
    for source in range(1, N, 2):
        likes = [(float(points[source] @ points[other]), other) for other in range(0, N, 2)]
        pairs.append((*max(likes), source))
    wanted = {source: other for _, other, source in sorted(pairs, reverse=True)[: N - KEEP]}
    assert merged_into(method_of("tome").choose(tokens, KEEP)) == wanted


def test_diffrate_merges_the_least_attended() -> None:
    tokens = one(some_tokens(), 0)
    order = tokens.importance[0].argsort(descending=True).tolist()
    assert merged_into(method_of("diffrate").choose(tokens, KEEP)) == nearest(tokens, order)
    dropping = diffrate.choose(tokens, KEEP, dropped=2)
    assert dropping.share is not None
    assert dropping.share[0].tolist() == [1.0] * (N - KEEP - 2) + [0.0] * 2


def test_fisher_merges_what_costs_least() -> None:
    tokens = one(some_tokens(), 0)
    points, importance = tokens.points[0], tokens.importance[0]
    prices = []
    for i in range(N):
        above = [float(points[i] @ points[j]) for j in range(N) if importance[j] > importance[i]]
        prices.append(float(importance[i]) ** 2 * (1 - max(above, default=-1.0)))
    order = sorted(range(N), key=lambda i: prices[i], reverse=True)
    assert merged_into(method_of("fisher").choose(tokens, KEEP)) == nearest(tokens, order)


def test_farthest_keeps_what_matters_and_is_far_from_what_stays() -> None:
    tokens = one(some_tokens(), 0)
    points, importance = tokens.points[0], tokens.importance[0].tolist()
    order = [max(range(N), key=lambda i: importance[i])]
    while len(order) < N:
        left = [i for i in range(N) if i not in order]
        away = {i: min(1 - float(points[i] @ points[j]) for j in order) for i in left}
        order.append(max(left, key=lambda i: importance[i] * away[i]))
    assert merged_into(method_of("farthest").choose(tokens, KEEP)) == nearest(tokens, order)


def test_ppt_drops_where_attention_is_uneven() -> None:
    flat = one(some_tokens(), 0)
    even = ppt.choose(flat, KEEP, threshold=1e9)
    assert merged_into(even) == merged_into(method_of("tome").choose(flat, KEEP))
    uneven = ppt.choose(flat, KEEP, threshold=0.0)
    assert uneven.share is not None
    assert not uneven.share.any()
    best = flat.importance[0].argsort(descending=True)[:KEEP]
    assert torch.equal(uneven.kept[0], best.sort().values)
    kept = set(best.tolist())
    products = flat.points[0] @ flat.points[0].T
    where = places(uneven)[0]  # what is dropped shows the token most like it
    for patch in set(range(N)) - kept:
        near = max(kept, key=lambda other: float(products[patch, other]))
        assert where[patch] == where[near]


def test_mctf_goes_both_ways() -> None:
    tokens, removed = one(some_tokens(), 0), N - KEEP
    points, sizes, paid = tokens.points[0], tokens.sizes[0], tokens.importance[0]

    def attraction(one: int, other: int) -> float:
        likeness = (float(points[one] @ points[other]) + 1) / 2
        return likeness / float(
            (paid[one] * paid[other]) ** (1 / 20) * (sizes[one] * sizes[other]) ** (1 / 40)
        )

    odd, even = range(1, N, 2), range(0, N, 2)
    partner = {i: max(even, key=lambda j: attraction(i, j)) for i in odd}
    going = sorted(odd, key=lambda i: attraction(i, partner[i]), reverse=True)
    going, left = going[: removed // 2], going[removed // 2 :]
    home = {j: max(left, key=lambda i: attraction(i, j)) for j in even}
    back = sorted(even, key=lambda j: attraction(home[j], j), reverse=True)[
        : removed - removed // 2
    ]
    wanted = {j: home[j] for j in back}
    wanted |= {i: wanted.get(partner[i], partner[i]) for i in going}
    assert merged_into(method_of("mctf").choose(tokens, KEEP)) == wanted


def test_evit_fuses_all_that_is_not_attended() -> None:
    tokens, x = one(some_tokens(), 0), draw(1, N, 5)
    order = tokens.importance[0].argsort(descending=True).tolist()
    choice = method_of("evit").choose(tokens, KEEP)
    assert choice.kept[0].tolist() == order[:KEEP]
    assert merged_into(choice) == dict.fromkeys(order[KEEP:], order[KEEP - 1])
    fused = order[KEEP - 1 :]
    weight = (tokens.sizes * tokens.importance)[0, fused]
    merged, sizes = combine(x, tokens.sizes, choice)
    assert torch.allclose(
        merged[0, -1], (weight[:, None] * x[0, fused]).sum(0) / weight.sum(), atol=1e-5
    )
    assert torch.allclose(sizes[0, -1], tokens.sizes[0, fused].sum())


@pytest.mark.parametrize("method", ["tome", "mctf", "ppt"])
def test_the_order_of_what_stays_does_not_depend_on_scores(method: str) -> None:
    for image in range(3):
        kept = method_of(method).choose(one(some_tokens(), image), KEEP).kept[0]
        for side in (0, 1):  # of the bipartition
            places = kept[kept % 2 == side]
            assert torch.equal(places, places.sort().values)


def test_sizes_in_attention_are_repeated_keys() -> None:
    q, k, v = draw(1, 3, 8), draw(1, 4, 8, seed=1), draw(1, 4, 8, seed=2)
    counts = torch.tensor([1, 3, 2, 1])
    again = torch.repeat_interleave(torch.arange(4), counts)
    merged = attend(q, k, v, 2, 0.5, counts.float().log()[None, None, None])
    assert torch.allclose(merged, attend(q, k[:, again], v[:, again], 2, 0.5), atol=1e-6)


def test_attention_paid_is_that_of_attention() -> None:
    q, k, sizes = draw(2, 1, 8), draw(2, 5, 8, seed=1), 1 + draw(2, 5, seed=2).abs()
    v = torch.eye(5).repeat(2, 1, 2)  # each head returns its weights
    weights = attend(q, k, v, 2, 0.5, sizes[:, None, None].log()).view(2, 2, 5).mean(1)
    paid = attention_paid(q, k, 2, 0.5, sizes.log())
    assert torch.allclose(paid, weights, atol=1e-6)


def test_attention_of_all_is_that_of_attention() -> None:
    prefix, heads, all_tokens = 1, 2, 6
    q, k, x = (draw(2, all_tokens, 8, seed=seed) for seed in (1, 2, 3))
    bias = draw(2, all_tokens, seed=4)
    v = torch.eye(all_tokens).repeat(2, 1, heads)  # each head returns its weights
    weights = attend(q, k, v, heads, 0.5, bias[:, None, None]).unflatten(-1, (heads, -1))
    sizes = torch.ones(2, all_tokens - prefix)
    view = View(x, sizes, q, k, bias, prefix, True, heads, 0.5, None, None)
    found = ATTENTION.tokens(view).importance
    assert torch.allclose(found, weights.mean((1, 2))[:, prefix:], atol=1e-6)


def test_merging_attention_ahead_is_merging_what_it_gives() -> None:
    """MCTF's way, columns of the attention added up and rows averaged, and the docstring's."""
    tokens, x, v = some_tokens(2), draw(2, N, 8), draw(2, N, 8, seed=5)
    choice = method_of("mctf").choose(tokens, KEEP)
    assert isinstance(choice, Merge)
    attention = draw(2, N, N, seed=6).softmax(-1)
    where = torch.nn.functional.one_hot(places(choice), KEEP).to(x.dtype)  # [B, N, KEEP]
    ours = (where * choice.weight[..., None]).mT  # type: ignore[index]
    ours = ours / ours.sum(-1, keepdim=True)  # [B, KEEP, N], rows sum to 1
    merged_values = ours @ v
    ahead = (ours @ attention @ where) @ merged_values
    after, _ = combine(attention @ (where @ merged_values), tokens.sizes, choice)
    assert torch.allclose(ahead, after, atol=1e-5)


def test_readers_find_how_large_gradients_are_and_where_tokens_differ() -> None:
    h = normalised(draw(40, 12, 16) * torch.linspace(0.1, 2, 16))
    gradient = h[..., :1].exp() * draw(16)  # its size follows the first channel
    statistics = ReaderStatistics.empty(16)
    statistics.update(h, gradient)
    level, coordinates = statistics.solve(4).split([1, 4], 1)
    away = (h @ level - h[..., :1])[..., 0]
    assert float(away.std(1).mean()) < 0.15 * float(h[..., 0].std(1).mean())
    flat = h.flatten(0, 1)
    explained = (flat @ coordinates).square().sum() / flat.square().sum()
    assert torch.allclose(coordinates.T @ coordinates, torch.eye(4), atol=1e-5)
    assert explained > (flat[:, -4:].square().sum() / flat.square().sum()) - 1e-6


def test_a_token_that_is_not_mixed_keeps_its_value() -> None:
    tokens, x = some_tokens(), draw(3, N, 5)
    choice = replace(method_of("fisher").choose(tokens, KEEP), mixed=False)
    merged, sizes = combine(x, tokens.sizes, choice)
    assert torch.equal(merged, x.gather(1, choice.kept[..., None].expand(-1, -1, 5)))
    assert torch.allclose(sizes.sum(1), tokens.sizes.sum(1))


def merged_into(choice: Merge) -> dict[int, int]:
    """Which token each one that goes joins, of the only image."""
    kept = choice.kept[0].tolist()
    pairs = zip(choice.gone[0].tolist(), choice.target[0].tolist(), strict=True)
    return {gone: kept[slot] for gone, slot in pairs}


def nearest(tokens: Tokens, order: list[int]) -> dict[int, int]:
    """What each token of `order` behind the first KEEP is most like among these."""
    points = tokens.points[0]
    return {
        gone: max(order[:KEEP], key=lambda kept: float(points[gone] @ points[kept]))
        for gone in order[KEEP:]
    }
