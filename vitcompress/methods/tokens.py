"""Fewer tokens for the same image: which stay, and which of these take in the others.

Every operator is a choice; the arithmetic is one: x' = M(w ⊙ x) / (M w) and s' = M s, with sizes s
(how many patches a token stands for), weights w (the sizes, or more) and a matrix M ≥ 0 that has a
one for each token that stays and one more entry for each token that does not. All counts are static
and every image is treated alone, so that a batch gives what its images give one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcompress.methods.selection import descending, inverse, one_hot, rows

_LEAST = 1e-6  # attention that a token has at least


@dataclass(frozen=True)
class Tokens:
    """What an operator looks at, of the patch tokens only.

    `points` [B, n, d]: of norm 1; what is alike is judged by their products. `sizes` [B, n, 1].
    `importance` [B, n, 1]: the attention paid to each, or what stands for it.
    """

    points: Tensor
    sizes: Tensor
    importance: Tensor


@dataclass(frozen=True)
class Choice:
    """Which tokens stay and where the others go.

    `kept` [B, k, 1] and `gone` [B, n − k, 1]: indices, together all tokens. `target` [B, n − k]:
    the place in `kept` of the token that takes each one in. `share` [B, 1, n − k]: how much of it
    is taken in, 0 for a token that is dropped; None: all. `weight` [B, n, 1]: how much each counts
    in the mean; None: its size. `mixed`: whether a token that takes others in becomes the mean;
    else it only grows in size.
    """

    kept: Tensor
    gone: Tensor
    target: Tensor
    share: Tensor | None = None
    weight: Tensor | None = None
    mixed: bool = True


Operator = Callable[[Tokens, int], Choice]
"""(tokens, how many to keep) → choice."""


def combine(x: Tensor, sizes: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """Apply `choice` to `x` [B, n, C] of `sizes` [B, n, 1]: [B, k, C] and [B, k, 1]."""
    kept, gone = choice.kept, choice.gone
    into = one_hot(choice.target, kept.shape[1]).to(x)
    if choice.share is not None:
        into = into * choice.share

    def gathered(values: Tensor) -> Tensor:
        return rows(values, kept) + into @ rows(values, gone)

    if not choice.mixed:
        return rows(x, kept), gathered(sizes)
    # All sums at once: every small operator takes its time. What counts how much is a constant for
    # gradients, and so for relevance.
    if choice.weight is None:
        mixed, size = gathered(torch.cat([x * sizes, sizes], -1)).split([x.shape[-1], 1], -1)
        return mixed / size.detach(), size.detach()
    weight = choice.weight.detach()
    summed = gathered(torch.cat([x * weight, weight, sizes], -1))
    mixed, total, size = summed.split([x.shape[-1], 1, 1], -1)
    return mixed / total.detach(), size.detach()


def places(choice: Choice, prefix: int = 0) -> Tensor:
    """Where each of p + n tokens is after `combine`, the first p staying: int64 [B, p + n, 1].

    One that was dropped is where the token most like it is.
    """
    batch, kept = choice.kept.shape[0], choice.kept.shape[1]
    stay = torch.arange(kept, device=choice.kept.device)[:, None].expand(batch, -1, -1)
    order = torch.cat([choice.kept, choice.gone], 1)
    return _after(prefix, rows(torch.cat([stay, choice.target[..., None]], 1), inverse(order)))


def origins(choice: Choice, prefix: int = 0) -> Tensor:
    """Which of p + n tokens each is after `combine`, the first p staying: int64 [B, p + k, 1]."""
    return _after(prefix, choice.kept)


def _after(prefix: int, index: Tensor) -> Tensor:
    """`index` [B, n, 1] of patches as one of all tokens, of which the first `prefix` stay."""
    if not prefix:
        return index
    # By arithmetic, as onnxruntime does not see the shape of an expansion to the batch.
    first = index[:, :1] * 0 + torch.arange(prefix, device=index.device)[:, None]
    return torch.cat([first, index + prefix], 1)


def attention_paid(
    query: Tensor, k: Tensor, heads: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """The attention of one query to all tokens, the mean over heads.

    `query` [B, 1, h·d], `k` [B, n, h·d], `bias` [B, n] of the logits → [B, n, 1].
    """
    channels = k.shape[-1]
    head = torch.arange(channels, device=k.device) // (channels // heads)
    apart = (head[:, None] == torch.arange(heads, device=k.device)).to(k.dtype)  # [h·d, h]
    logits = k @ (query.transpose(1, 2) * (apart * scale))
    if bias is not None:
        logits = logits + bias[..., None]
    return logits.softmax(1).mean(-1, keepdim=True)


def tome(tokens: Tokens, keep: int) -> Choice:
    """Bipartite soft matching (Bolya et al., ICLR 2023): every other token may join one between.

    The most similar pairs are merged. At most half can go.
    """
    similarity = _bipartite(tokens.points)
    best, target = similarity.max(-1)
    order = descending(best[..., None])
    removed = tokens.points.shape[1] - keep
    gone, stay = order[:, :removed], _in_place(order[:, removed:])
    other = torch.arange(0, tokens.points.shape[1], 2, device=order.device)
    others = other[:, None].expand(order.shape[0], -1, -1)
    joined = rows(target[..., None], gone)[..., 0] + stay.shape[1]
    return Choice(torch.cat([2 * stay + 1, others], 1), 2 * gone + 1, joined)


def diffrate(tokens: Tokens, keep: int, dropped: int = 0) -> Choice:
    """The least attended tokens go (Chen et al., ICCV 2023, with the sizes not damped).

    Of these the `dropped` that are attended least are dropped; the others join the most similar of
    those that stay.
    """
    order = descending(tokens.importance)
    kept, gone = order[:, :keep], order[:, keep:]
    share = None
    if dropped:
        taken = torch.arange(gone.shape[1], device=gone.device) < gone.shape[1] - dropped
        share = taken.to(tokens.sizes.dtype)[None, None]
    return Choice(kept, gone, _nearest(tokens.points, kept, gone), share)


def evit(tokens: Tokens, keep: int) -> Choice:
    """Keep the most attended and fuse all others into one (Liang et al., ICLR 2022).

    The last of the kept is the start of the fused token, which is the mean of its parts, weighted
    by the attention paid to them.
    """
    order = descending(tokens.importance)
    kept, gone = order[:, :keep], order[:, keep:]
    return Choice(kept, gone, torch.full_like(gone[..., 0], keep - 1), weight=_attended(tokens))


def mctf(tokens: Tokens, keep: int) -> Choice:
    """Matching by similarity, attention and size, both ways (Lee et al., CVPR 2024).

    A pair's attraction is the product of (cos + 1)/2, (1/(a_i a_j))^(1/20), (1/(s_i s_j))^(1/40).
    Half of the tokens to remove go from one side of the bipartition to the other and half back. The
    mean is weighted by attention: that which is paid now, not that of the next block.
    """
    repel = (tokens.importance + _LEAST).log() / 20 + tokens.sizes.log() / 40
    attraction = (_bipartite(tokens.points) + 1).clamp_min(1e-6).log()
    attraction = attraction - repel[:, 1::2] - repel[:, ::2].transpose(1, 2)
    removed = tokens.points.shape[1] - keep
    there, back = removed - removed // 2, removed // 2
    best, target = attraction.max(-1)
    order = descending(best[..., None])
    gone_odd, kept_odd = order[:, :there], _in_place(order[:, there:])
    returned, home = rows(attraction, kept_odd).max(1)
    order = descending(returned[..., None])
    gone_even, kept_even = order[:, :back], _in_place(order[:, back:])
    # An odd token whose even partner goes on to an odd one goes there with it.
    slots = kept_odd.shape[1] + torch.arange(kept_even.shape[1], device=order.device)[:, None]
    homes = rows(home[..., None], gone_even)
    place = torch.cat([homes, slots.expand(order.shape[0], -1, -1)], 1)
    now = rows(place, inverse(torch.cat([gone_even, kept_even], 1)))
    moved = rows(now, rows(target[..., None], gone_odd))
    return Choice(
        kept=torch.cat([2 * kept_odd + 1, 2 * kept_even], 1),
        gone=torch.cat([2 * gone_odd + 1, 2 * gone_even], 1),
        target=torch.cat([moved, homes], 1)[..., 0],
        weight=_attended(tokens),
    )


def ppt(tokens: Tokens, keep: int, threshold: float = 2.7) -> Choice:
    """Each image either drops its least attended tokens or merges its most similar ones.

    Wu et al. (2023): it drops where attention is uneven, its variance above the threshold. Here
    `threshold` is the variance of n·a, where a sums to 1 over n tokens (7e-5 · 196² = 2.7).
    """
    attention = tokens.importance
    uneven = (attention / attention.mean(1, keepdim=True)).var(1, keepdim=True) > threshold
    merging = tome(tokens, keep)
    order = descending(attention)
    kept, gone = _in_place(order[:, :keep]), order[:, keep:]
    takes = (~uneven).to(tokens.sizes.dtype)
    return Choice(
        kept=torch.where(uneven, kept, merging.kept),
        gone=torch.where(uneven, gone, merging.gone),
        target=torch.where(uneven[..., 0], _nearest(tokens.points, kept, gone), merging.target),
        share=takes,
    )


def fisher(tokens: Tokens, keep: int) -> Choice:
    """Those go whose merging changes the model's answer least, to second order.

    Moving a token by d changes the answer by about ½ (gᵀd)² nats, g the gradient at the token. Here
    `importance` stands for |g|, and the price of a token is |g|²·δ², with δ the distance to the
    nearest token of more importance (the decision value of density-peak clustering: Rodriguez &
    Laio, 2014). The cheapest go and join the nearest that stays, whose mean is weighted by
    importance.
    """
    importance, points = tokens.importance, tokens.points
    above = (importance.transpose(1, 2) > importance).to(points.dtype)
    # Products lie in [−1, 1]: half of one plus one is more than half of any other.
    likeness = 0.5 * (points @ points.transpose(1, 2)) + above
    distance = 1.5 - likeness.amax(-1, keepdim=True)  # a quarter of δ²; 1 where none is above
    order = descending(importance * importance * distance)
    kept, gone = order.split([keep, order.shape[1] - keep], 1)
    return Choice(kept, gone, _nearest(points, kept, gone), weight=importance)


OPERATORS: dict[str, Operator] = {
    "tome": tome,
    "diffrate": diffrate,
    "evit": evit,
    "mctf": mctf,
    "ppt": ppt,
    "fisher": fisher,
}


def fewest(method: str, count: int) -> int:
    """The fewest of `count` patch tokens that `method` can keep at one step."""
    half = count // 2
    return {"tome": count - half, "ppt": count - half, "mctf": count - 2 * half + 2}.get(method, 1)


def choice_macs(method: str, count: int, keep: int, width: int) -> int:
    """Multiply-accumulates of the choice among `count` patch tokens; `width` of their points."""
    removed = count - keep
    pairs = count // 2 * (count - count // 2)
    nearest = removed * keep
    compared = {
        "diffrate": nearest,
        "fisher": count**2 + nearest,
        "evit": 0,
        "ppt": pairs + nearest,
    }
    return compared.get(method, pairs) * width


def combine_macs(method: str, count: int, keep: int, channels: int, mixed: bool) -> int:
    """Multiply-accumulates of `combine` from `count` patch tokens to `keep`."""
    columns = 1
    if mixed:
        columns += channels + (method in ("fisher", "evit", "mctf"))
    return keep * (count - keep) * columns


def _bipartite(points: Tensor) -> Tensor:
    """The products of the odd tokens with the even ones: [B, ⌊n/2⌋, ⌈n/2⌉]."""
    return points[:, 1::2] @ points[:, ::2].transpose(1, 2)


def _in_place(stay: Tensor) -> Tensor:
    """The tokens `stay` [B, k, 1] in the order they had.

    Which are odd in the next block then does not depend on the order of scores, where of two that
    are nearly equal another program may see the other first.
    """
    return rows(stay, descending(-stay.float()))


def _nearest(points: Tensor, kept: Tensor, gone: Tensor) -> Tensor:
    """The place in `kept` of the token most like each of `gone`: [B, n − k]."""
    return (rows(points, gone) @ rows(points, kept).transpose(1, 2)).argmax(-1)


def _attended(tokens: Tokens) -> Tensor:
    """Size times attention as a weight [B, n, 1] that never vanishes."""
    return tokens.sizes * (tokens.importance + _LEAST)
