"""Fewer tokens for the same image: which stay, and which of these take in the others.

Every operator is a choice; the arithmetic is one: x' = M(s ⊙ x) / (M s) and s' = M s, with sizes s
(how many patches a token stands for) and a matrix M ≥ 0 that has a one for each token that stays
and one more entry for each token that does not. All counts are static and every image is treated
alone, so that a batch gives what its images give one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompress.methods.selection import descending, inverse, rows


@dataclass(frozen=True)
class Tokens:
    """What an operator may look at: patch tokens, without the prefix.

    `x` [B, n, C]: features after attention. `sizes` [B, n, 1]. `keys` [B, n, d]: mean over the
    heads. `importance` [B, n]: the attention paid to each.
    """

    x: Tensor
    sizes: Tensor
    keys: Tensor
    importance: Tensor


@dataclass(frozen=True)
class Choice:
    """Which tokens stay and where the others go.

    `kept` [B, k] and `gone` [B, n − k]: indices, together all tokens. `target` [B, n − k]: the
    place in `kept` of the token that takes each one in. `share` [B, n − k, 1]: how much of it is
    taken in, 0 for a token that is dropped; None: all. `size_share`: likewise for its size, where
    that differs. `weight` [B, n, 1]: what counts in the mean beside the size; None: nothing.
    """

    kept: Tensor
    gone: Tensor
    target: Tensor
    share: Tensor | None = None
    size_share: Tensor | None = None
    weight: Tensor | None = None

    def places(self) -> Tensor:
        """The place among the kept where each of the n tokens now is, int64 [B, n]."""
        batch, kept = self.kept.shape
        stay = torch.arange(kept, device=self.kept.device).expand(batch, kept)
        order = torch.cat([self.kept, self.gone], 1)
        return rows(torch.cat([stay, self.target], 1), inverse(order))


Operator = Callable[[Tokens, int], Choice]
"""(tokens, how many to keep) → choice."""


def combine(x: Tensor, sizes: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """Apply `choice` to tokens `x` [B, n, C] of `sizes` [B, n, 1]: [B, k, C] and [B, k, 1]."""
    weight = sizes if choice.weight is None else sizes * choice.weight
    slots = torch.arange(choice.kept.shape[1], device=x.device)[:, None]
    into = (choice.target[:, None] == slots).to(x.dtype)  # [B, k, n − k]
    gone_weight = rows(weight, choice.gone)
    gone_size = gone_weight if choice.weight is None else rows(sizes, choice.gone)
    size_share = choice.share if choice.size_share is None else choice.size_share
    if choice.share is not None:
        gone_weight = gone_weight * choice.share
    if size_share is not None:
        gone_size = gone_size * size_share
    kept_weight = rows(weight, choice.kept)
    total = kept_weight + into @ gone_weight
    mixed = rows(x, choice.kept) * kept_weight + into @ (rows(x, choice.gone) * gone_weight)
    if gone_size is gone_weight:
        return mixed / total, total
    return mixed / total, rows(sizes, choice.kept) + into @ gone_size


def attention_paid(query: Tensor, k: Tensor, heads: int, scale: float, sizes: Tensor) -> Tensor:
    """The attention of one query to all tokens, the mean over heads.

    `query` [B, 1, h·d], `k` [B, n, h·d], `sizes` [B, n, 1] → [B, n].
    """
    channels = k.shape[-1]
    head = torch.arange(channels, device=k.device) // (channels // heads)
    apart = (head[:, None] == torch.arange(heads, device=k.device)).to(k.dtype)  # [h·d, h]
    logits = k @ (query.transpose(1, 2) * (apart * scale)) + sizes.log()
    return logits.softmax(1).mean(-1)


def tome(tokens: Tokens, keep: int) -> Choice:
    """Bipartite soft matching (Bolya et al., ICLR 2023): every other token may join one between.

    The most similar pairs by the cosine of their keys are merged. At most half can go.
    """
    similarity, source, other = _bipartite(tokens.keys)
    best, target = similarity.max(-1)
    return _joined(best, target, source, other, tokens.x.shape[1] - keep)


def diffrate(tokens: Tokens, keep: int, dropped: int = 0) -> Choice:
    """The least attended tokens go (Chen et al., ICCV 2023, with the sizes not damped).

    Of these the `dropped` that are attended least are dropped; the others join the most similar of
    those that stay, by the cosine of their features.
    """
    order = descending(tokens.importance)
    kept, gone = order[:, :keep], order[:, keep:]
    target = _nearest(F.normalize(tokens.x, dim=-1), kept, gone)
    share = None
    if dropped:
        taken = torch.arange(gone.shape[1], device=gone.device) < gone.shape[1] - dropped
        share = taken.to(tokens.x.dtype)[:, None].expand(gone.shape[0], -1, 1)
    return Choice(kept, gone, target, share)


def evit(tokens: Tokens, keep: int) -> Choice:
    """Keep the most attended and fuse all others into one (Liang et al., ICLR 2022).

    The last of the kept is the start of the fused token, which is the mean of its parts, weighted
    by the attention paid to them.
    """
    order = descending(tokens.importance)
    kept, gone = order[:, :keep], order[:, keep:]
    return Choice(kept, gone, torch.full_like(gone, keep - 1), weight=_positive(tokens.importance))


def mctf(tokens: Tokens, keep: int) -> Choice:
    """Matching by similarity, attention and size, both ways (Lee et al., CVPR 2024).

    A pair's attraction is the product of ((cos + 1)/2), (1/(a_i a_j))^(1/20) and
    (1/(s_i s_j))^(1/40); half of the tokens to remove go from one side of the bipartition to the
    other and half back. The mean is weighted by attention. Attention is that which is paid now, not
    that of the next block.
    """
    similarity, left, right = _bipartite(tokens.x)
    repel = _positive(tokens.importance)[..., 0].log() / 20 + tokens.sizes[..., 0].log() / 40
    attraction = (similarity + 1).clamp_min(1e-6).log()
    attraction = attraction - repel[:, left, None] - repel[:, None, right]
    removed = tokens.x.shape[1] - keep
    there, back = removed - removed // 2, removed // 2
    best, target = attraction.max(-1)
    order = descending(best)
    gone_left, kept_left = order[:, :there], order[:, there:]
    returned, home = rows(attraction, kept_left).max(1)
    order = descending(returned)
    gone_right, kept_right = order[:, :back], order[:, back:]
    slots = kept_left.shape[1] + torch.arange(kept_right.shape[1], device=order.device)
    homes = rows(home, gone_right)
    place = torch.cat([homes, slots.expand(order.shape[0], -1)], 1)
    moved = rows(rows(place, inverse(order)), rows(target, gone_left))
    return Choice(
        kept=torch.cat([left[kept_left], right[kept_right]], 1),
        gone=torch.cat([left[gone_left], right[gone_right]], 1),
        target=torch.cat([moved, homes], 1),
        weight=_positive(tokens.importance),
    )


def ppt(tokens: Tokens, keep: int, threshold: float = 2.7) -> Choice:
    """Each image either drops its least attended tokens or merges its most similar ones.

    Wu et al. (2023): it drops where attention is uneven, its variance above the threshold. Here
    `threshold` is the variance of n·a, where a sums to 1 over n tokens (7e-5 · 196² = 2.7).
    """
    count = tokens.importance.shape[1]
    uneven = (tokens.importance / tokens.importance.mean(1, keepdim=True)).var(1) > threshold
    merging = tome(tokens, keep)
    order = descending(tokens.importance)
    drops = uneven[:, None]
    takes = (~uneven).to(tokens.x.dtype)[:, None, None]
    return Choice(
        kept=torch.where(drops, order[:, :keep], merging.kept),
        gone=torch.where(drops, order[:, keep:], merging.gone),
        target=merging.target,
        share=takes.expand(-1, count - keep, 1),
    )


def peaks(tokens: Tokens, keep: int) -> Choice:
    """Tokens stay that are attended and unlike any token attended more.

    With a the attention paid to a token and δ = 1 − the cosine to the most similar token of more
    attention, those of least a²·δ go and join the most similar that stays: the peaks of attention
    as centres, in the manner of density-peak clustering (Rodriguez & Laio, 2014). Only the least
    attended tokens, twice as many as have to go, are candidates. The mean is weighted by attention.
    """
    count = tokens.x.shape[1]
    removed = count - keep
    order = descending(tokens.importance)
    features = rows(F.normalize(tokens.x, dim=-1), order)
    importance = rows(tokens.importance, order)
    safe = max(1, keep - removed)
    similarity = features[:, safe:] @ features.transpose(1, 2)
    place = torch.arange(count, device=order.device)
    hidden = torch.where(place >= place[safe:, None], -4.0, 0.0)  # the token itself and lesser ones
    distance = 1 - (similarity + hidden).amax(-1)
    ranked = descending((importance[:, safe:] * count).square() * distance)
    stays = keep - safe
    sure = place[:safe].expand(order.shape[0], safe)
    kept = torch.cat([sure, ranked[:, :stays] + safe], 1)
    gone = ranked[:, stays:] + safe
    target = _nearest(features, kept, gone)
    weight = _positive(tokens.importance)
    return Choice(rows(order, kept), rows(order, gone), target, weight=weight)


OPERATORS: dict[str, Operator] = {
    "tome": tome,
    "diffrate": diffrate,
    "evit": evit,
    "mctf": mctf,
    "ppt": ppt,
    "peaks": peaks,
}


def fewest(method: str, count: int) -> int:
    """The fewest of `count` patch tokens that `method` can keep at one step."""
    return {"tome": count // 2, "ppt": count // 2, "mctf": 2}.get(method, 1)


def choice_macs(method: str, count: int, keep: int, channels: int, width: int) -> int:
    """Multiply-accumulates of one step, choice and `combine`, on the `count` patches of one image.

    `channels` of the features; `width` of the mean key.
    """
    removed = count - keep
    half, rest = count // 2, count - count // 2
    columns = 1 if method in ("tome", "diffrate") else 2
    matching = {
        "tome": half * rest * width,
        "ppt": half * rest * width,
        "mctf": half * rest * channels,
        "diffrate": removed * keep * channels,
        "peaks": (count - max(1, keep - removed)) * count * channels + removed * keep * channels,
        "evit": 0,
    }[method]
    return matching + keep * removed * (channels + columns)


def _bipartite(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cosines of odd tokens [B, ⌊n/2⌋] to even ones, and the indices of both."""
    place = torch.arange(features.shape[1], device=features.device)
    source, other = place[1::2], place[::2]
    features = F.normalize(features, dim=-1)
    return features[:, 1::2] @ features[:, ::2].transpose(1, 2), source, other


def _joined(best: Tensor, target: Tensor, source: Tensor, other: Tensor, removed: int) -> Choice:
    """The `removed` sources of the largest `best` [B, a] join their `target` among `other`."""
    order = descending(best)
    gone, stay = order[:, :removed], order[:, removed:]
    others = other.expand(order.shape[0], -1)
    return Choice(
        kept=torch.cat([source[stay], others], 1),
        gone=source[gone],
        target=rows(target, gone) + stay.shape[1],
    )


def _nearest(features: Tensor, kept: Tensor, gone: Tensor) -> Tensor:
    """The place in `kept` of the token most similar to each of `gone`; `features` of norm 1."""
    return (rows(features, gone) @ rows(features, kept).transpose(1, 2)).argmax(-1)


def _positive(importance: Tensor) -> Tensor:
    """Attention as weights [B, n, 1] that never vanish."""
    return (importance + 1e-6)[..., None]
