"""Fewer tokens for the same image: which stay, and which of these take in the others.

Every method, one file in `merging`, makes a choice; the arithmetic is one: x' = M(w ⊙ x) / (M w)
and s' = M s, with sizes s (how many patches a token stands for), weights w (the sizes, or more) and
a matrix M ≥ 0. It has a one for each token that stays and one more entry for each token that does
not, or its columns sum to 1 where all tokens become new ones. All counts are static and every image
is treated alone, so that a batch gives what its images give one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompress import registry
from vitcompress.methods.readers import normalised
from vitcompress.methods.selection import added, descending, inverse, rows, unit
from vitcompress.terms import MERGING

LEAST = 1e-6
"""Attention that a token has at least, where it is a factor."""


@dataclass(frozen=True)
class Tokens:
    """What a method looks at, of the patch tokens only.

    `points` [B, n, d]: of norm 1; what is alike is judged by their products. `sizes` [B, n].
    `importance` [B, n]: the attention paid to each, or what stands for it. `grid`: rows and columns
    of patches, of which each is one token still; None where some have merged.
    """

    points: Tensor
    sizes: Tensor
    importance: Tensor
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Merge:
    """Which tokens stay and where the others go.

    `kept` [B, k] and `gone` [B, n − k]: indices, together all tokens. `target` [B, n − k]: the
    place in `kept` of the token that takes each one in. `share` [B or 1, n − k or 1]: how much of
    it is taken in, 0 for a token that is dropped; None: all. `weight` [B, n]: how much each counts
    on average; None: its size. `mixed`: whether a token that takes others in becomes the mean;
    else it only grows in size.
    """

    kept: Tensor
    gone: Tensor
    target: Tensor
    share: Tensor | None = None
    weight: Tensor | None = None
    mixed: bool = True


@dataclass(frozen=True)
class Mixture:
    """New tokens, of which each is a mean of all that there are.

    `shares` [B, k, n] ≥ 0: how much of each token goes to each new one; those of a token sum to 1.
    `weight` [B, n]: how much each counts on average.
    """

    shares: Tensor
    weight: Tensor


Choice = Merge | Mixture


@dataclass(frozen=True)
class View:
    """What there is to look at between attention and MLP.

    `x` [B, p + n, C], `queries` and `keys` [B, p + n, h·d] and `bias` [B, p + n] of the logits
    (None: none), of all tokens, of which the first `prefix` are no patches and the very first may
    be a `class_token`; `sizes` [B, n] of patches. `heads`, `scale`: of the attention. `reader`:
    what `READER` needs. `grid`: as of `Tokens`.
    """

    x: Tensor
    sizes: Tensor
    queries: Tensor
    keys: Tensor
    bias: Tensor | None
    prefix: int
    class_token: bool
    heads: int
    scale: float
    reader: Tensor | None
    grid: tuple[int, int] | None


class Widths(NamedTuple):
    """Of a block that merges: channels of its stream, features of its keys, heads, prefix tokens,
    and coordinates of a reader."""

    channels: int
    keys: int
    heads: int
    prefix: int
    rank: int


@dataclass(frozen=True)
class Reading:
    """What a method judges tokens by.

    `tokens`: from what there is to look at. `width`: of points. `macs`: multiply-accumulates for so
    many patch tokens. `fitted`: whether each block holds a reader [C, 1 + rank], solved from
    gradients (`readers.ReaderStatistics`).
    """

    tokens: Callable[[View], Tokens]
    width: Callable[[Widths], int]
    macs: Callable[[Widths, int], int]
    fitted: bool = False


@dataclass(frozen=True)
class Method:
    """A way to merge tokens: a module of `merging` has one as its `METHOD`.

    `choose`: (tokens, how many to keep) → choice. `compared`: pairs of tokens compared for that,
    of so many, to keep so many. `mixtures`: whether its choices are `Mixture`s, which are made
    once, of tokens that are single patches. `fewest`: of so many patch tokens that one step can
    keep. `drop`: as `choose`, with how many of those that go are dropped; None where it cannot.
    `unmixed`: in which share of the blocks, from the first, tokens that take others in keep their
    value.
    """

    reading: Reading
    choose: Callable[[Tokens, int], Choice]
    compared: Callable[[int, int], int]
    mixtures: bool = False
    fewest: Callable[[int], int] = lambda count: 1
    drop: Callable[[Tokens, int, int], Merge] | None = None
    unmixed: float = 0.0

    def macs(self, widths: Widths, count: int, keep: int) -> int:
        """Multiply-accumulates of merging `count` patch tokens into `keep`: of choosing how, and of
        mixtures."""
        chosen = self.compared(count, keep) * self.reading.width(widths)
        mixed = keep * count * widths.channels if self.mixtures else 0
        return self.reading.macs(widths, count) + chosen + mixed


@cache
def method_of(name: str) -> Method:
    """The method that the module `name` of `merging` has."""
    return cast(Method, registry.load_module(MERGING, name).METHOD)


def combine(x: Tensor, sizes: Tensor, choice: Choice, prefix: int = 0) -> tuple[Tensor, Tensor]:
    """Apply `choice` to `x` [B, p + n, C], of which the first p stay, and to the `sizes` [B, n] of
    the others: [B, p + k, C] and [B, k]."""
    if isinstance(choice, Mixture):
        shares, weight = choice.shares.detach(), choice.weight.detach()
        parts = shares * weight[:, None]
        mean = parts / parts.sum(-1, keepdim=True).clamp_min(LEAST)
        size = (shares * sizes[:, None]).sum(-1).clamp_min(LEAST)
        return torch.cat([x[:, :prefix], mean @ x[:, prefix:]], 1), size

    def whole(values: Tensor) -> tuple[Tensor, Tensor]:
        """What each token that goes brings, and the sums of those that stay."""
        part = rows(values, choice.gone)
        if choice.share is not None:
            part = part * choice.share
        return part, added(rows(values, choice.kept), choice.target, part)

    left, size = rows(x, origins(choice, prefix)), whole(sizes)[1]
    if not choice.mixed:
        return left, size
    # The mean as what it differs by, for the few that take others in. What counts how much is a
    # constant for gradients, and so for relevance.
    part, total = whole(sizes if choice.weight is None else choice.weight.detach())
    into, ratio = choice.target + prefix, part / rows(total, choice.target)
    moved = rows(x, choice.gone + prefix) - rows(left, into)
    return added(left, into, moved * ratio[..., None]), size


def places(choice: Choice, prefix: int = 0) -> Tensor:
    """Where each of p + n tokens is after `combine`, the first p staying: int64 [B, p + n].

    One that was dropped is where the token most like it is, one of a mixture where most of it is.
    """
    if isinstance(choice, Mixture):
        return _after(prefix, choice.shares.argmax(1))
    batch, kept = choice.kept.shape[0], choice.kept.shape[1]
    stay = torch.arange(kept, device=choice.kept.device).expand(batch, -1)
    order = torch.cat([choice.kept, choice.gone], 1)
    return _after(prefix, rows(torch.cat([stay, choice.target], 1), inverse(order)))


def origins(choice: Choice, prefix: int = 0) -> Tensor:
    """Which of p + n tokens each is after `combine`, the first p staying: int64 [B, p + k].

    A mixture is the one that it has most of.
    """
    return _after(prefix, choice.shares.argmax(2) if isinstance(choice, Mixture) else choice.kept)


def _after(prefix: int, index: Tensor) -> Tensor:
    """`index` [B, n] of patches as one of all tokens, of which the first `prefix` stay."""
    if not prefix:
        return index
    # Padded, as onnxruntime does not see the shape of an expansion to the batch.
    shift = torch.arange(prefix + index.shape[1], device=index.device).clamp_max(prefix)
    return F.pad(index, (prefix, 0)) + shift


def means(x: Tensor, places: Tensor) -> Tensor:
    """By place, the mean of the tokens `x` [B, N, C] whose `places` [B, N] it is; zeros where there
    are none: [B, N, C]."""
    there = F.one_hot(places, x.shape[1]).mT.to(x.dtype)  # [B, place, token]
    return (there @ x) / there.sum(-1, keepdim=True).clamp_min(1)


def attention_paid(
    query: Tensor, k: Tensor, heads: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """The attention of one query to all tokens, the mean over heads.

    `query` [B, 1, h·d], `k` [B, n, h·d], `bias` [B, n] of the logits → [B, n].
    """
    channels = k.shape[-1]
    head = torch.arange(channels, device=k.device) // (channels // heads)
    apart = (head[:, None] == torch.arange(heads, device=k.device)).to(k.dtype)  # [h·d, h]
    logits = k @ (query.transpose(1, 2) * (apart * scale))
    if bias is not None:
        logits = logits + bias[..., None]
    return logits.softmax(1).mean(-1)


def _paid(view: View) -> Tensor:
    """The attention that the class token, or else the mean query, pays to each patch."""
    query = view.queries[:, :1] if view.class_token else view.queries.mean(1, keepdim=True)
    paid = attention_paid(query, view.keys, view.heads, view.scale, view.bias)
    return paid[:, view.prefix :]


def _by_attention(view: View) -> Tokens:
    """As `_by_values`, with the attention that all tokens pay to each."""
    q, k = (
        each.unflatten(-1, (view.heads, -1)).transpose(1, 2) for each in (view.queries, view.keys)
    )
    logits = q @ k.mT * view.scale
    if view.bias is not None:
        logits = logits + view.bias[:, None, None]
    paid = logits.softmax(-1).mean((1, 2))[:, view.prefix :]
    return Tokens(unit(view.x[:, view.prefix :]), view.sizes, paid, view.grid)


def _by_keys(view: View) -> Tokens:
    points = view.keys[:, view.prefix :].unflatten(-1, (view.heads, -1)).mean(-2)
    return Tokens(unit(points), view.sizes, _paid(view), view.grid)


def _by_values(view: View) -> Tokens:
    return Tokens(unit(view.x[:, view.prefix :]), view.sizes, _paid(view), view.grid)


def _by_reader(view: View) -> Tokens:
    assert view.reader is not None
    # Of all tokens, as it is cheaper to leave the prefix out of what is read than of the stream.
    read = (normalised(view.x) @ view.reader)[:, view.prefix :]
    level, coordinates = read.split([1, read.shape[-1] - 1], -1)
    importance = level.squeeze(-1).exp() * view.sizes
    return Tokens(unit(coordinates), view.sizes, importance, view.grid)


def _paying(widths: Widths, count: int) -> int:
    return (count + widths.prefix) * widths.keys * widths.heads


KEYS = Reading(_by_keys, lambda widths: widths.keys // widths.heads, _paying)
"""By their keys, the mean over heads, and by the attention paid to them."""

VALUES = Reading(_by_values, lambda widths: widths.channels, _paying)
"""By what they are, and by the attention paid to them."""

ATTENTION = Reading(
    _by_attention,
    lambda widths: widths.channels,
    lambda widths, count: (count + widths.prefix) ** 2 * widths.keys,
)
"""By what they are, and by the attention that all of them pay to each."""

READER = Reading(
    _by_reader,
    lambda widths: widths.rank,
    lambda widths, count: (count + widths.prefix) * widths.channels * (1 + widths.rank),
    fitted=True,
)
"""By what a matrix solved from gradients reads of them: where they lie, how much they matter."""


def bipartite(points: Tensor) -> Tensor:
    """The products of the odd tokens with the even ones: [B, ⌊n/2⌋, ⌈n/2⌉]."""
    return points[:, 1::2] @ points[:, ::2].transpose(1, 2)


def in_place(stay: Tensor) -> Tensor:
    """The tokens `stay` [B, k] in the order they had.

    Which are odd in the next block then does not depend on the order of scores, where of two that
    are nearly equal another program may see the other first.
    """
    return rows(stay, descending(-stay.float()))


def nearest(points: Tensor, kept: Tensor, gone: Tensor) -> Tensor:
    """The place in `kept` of the token most like each of `gone`: [B, n − k]."""
    return (rows(points, gone) @ rows(points, kept).transpose(1, 2)).argmax(-1)


def attended(tokens: Tokens) -> Tensor:
    """Size times attention as a weight [B, n] that never vanishes."""
    return tokens.sizes * (tokens.importance + LEAST)


def gathered(centres: Tensor, tokens: Tokens, temperature: float = 0.02) -> Mixture:
    """Every token shared out among `centres` [B, k, d] of norm 1: by the softmax over these of how
    alike they are to it, weighted by importance.

    Without training low temperatures are best: on deit_tiny the KL at 0.05 was two to three times
    that at 0.02, where mixtures are nearly those of the nearest centre.
    """
    likeness = centres @ tokens.points.mT
    return Mixture((likeness / temperature).softmax(1), tokens.importance)
