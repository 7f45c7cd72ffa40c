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

_FAR = 1e9  # further than any two points
_LEAST = 1e-6  # attention that a token has at least


@dataclass(frozen=True)
class Tokens:
    """What an operator may look at: patch tokens, without the prefix.

    `x` [B, n, C]: features after attention. `sizes` [B, n, 1]. `keys` [B, n, d]: what similarity is
    judged by, the mean key over the heads (for `fisher`, coordinates). `importance` [B, n]: the
    attention paid to each (for `fisher`, the size times a gradient's norm).
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
    taken in, 0 for a token that is dropped; None: all. `weight` [B, n, 1]: how much each counts in
    the mean; None: its size.
    """

    kept: Tensor
    gone: Tensor
    target: Tensor
    share: Tensor | None = None
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
    weight = sizes if choice.weight is None else choice.weight
    slots = torch.arange(choice.kept.shape[1], device=x.device)[:, None]
    into = (choice.target[:, None] == slots).to(x.dtype)  # [B, k, n − k]
    if choice.share is not None:
        into = into * choice.share.transpose(1, 2)
    kept_weight, gone_weight = rows(weight, choice.kept), rows(weight, choice.gone)
    total = kept_weight + into @ gone_weight
    mixed = rows(x, choice.kept) * kept_weight + into @ (rows(x, choice.gone) * gone_weight)
    if choice.weight is None:
        return mixed / total, total
    return mixed / total, rows(sizes, choice.kept) + into @ rows(sizes, choice.gone)


def attention_paid(query: Tensor, k: Tensor, heads: int, scale: float, sizes: Tensor) -> Tensor:
    """The attention of one query to all tokens, the mean over heads.

    `query` [B, 1, h·d], `k` [B, n, h·d], `sizes` [B, n, 1] → [B, n].
    """
    channels = k.shape[-1]
    head = torch.arange(channels, device=k.device) // (channels // heads)
    apart = (head[:, None] == torch.arange(heads, device=k.device)).to(k.dtype)  # [h·d, h]
    logits = k @ (query.transpose(1, 2) * (apart * scale)) + sizes.log()
    return logits.softmax(1).mean(-1)


class FisherStatistics:
    """Sums over images from which the tensors that `fisher` reads tokens with are solved.

    By `update`: normalised tokens `h` [B, n, C] (`normalised`) and the gradients of the loss there
    [B, n, C], the loss taken with labels drawn from the model's own softmax.
    """

    def __init__(self, channels: int) -> None:
        self.gram = torch.zeros(channels, channels, dtype=torch.float64)
        self.cross = torch.zeros(channels, dtype=torch.float64)
        self.fisher = torch.zeros(channels, channels, dtype=torch.float64)

    def update(self, h: Tensor, gradient: Tensor) -> None:
        # Every image counts the same, however sure the model is of it.
        square = gradient.square().sum(-1)
        mean = square.mean(1, keepdim=True).clamp_min(torch.finfo(square.dtype).tiny)
        level = (square / mean + 1e-3).log()
        level = (level - level.mean(1, keepdim=True)).flatten().double()
        centred = (h - h.mean(1, keepdim=True)).flatten(0, 1).double()
        even = (gradient / mean[..., None].sqrt()).flatten(0, 1).double()
        self.gram += centred.T @ centred
        self.cross += centred.T @ level
        self.fisher += even.T @ even

    def solve(self, rank: int) -> tuple[Tensor, Tensor]:
        """The tensors level [C, 1] and coordinates [C, rank].

        h @ level predicts log |g|² within an image (ridge regression). Distances between
        h @ coordinates weigh directions by the square root of the Fisher information there: its own
        weights, from few images, would trust the strongest directions too much.
        """
        eye = torch.eye(len(self.gram), dtype=torch.float64)
        damped = self.gram + 1e-3 * self.gram.diagonal().mean() * eye
        level = torch.linalg.solve(damped, self.cross)
        values, vectors = torch.linalg.eigh(self.fisher / self.fisher.diagonal().sum())
        values, vectors = values.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank]
        return level[:, None].float(), (vectors * values**0.25).float()


def normalised(x: Tensor) -> Tensor:
    """Tokens [..., C] of mean 0 and variance 1, as the layer after them sees them."""
    return F.layer_norm(x, x.shape[-1:])


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
    return Choice(kept, gone, torch.full_like(gone, keep - 1), weight=_attended(tokens))


def mctf(tokens: Tokens, keep: int) -> Choice:
    """Matching by similarity, attention and size, both ways (Lee et al., CVPR 2024).

    A pair's attraction is the product of ((cos + 1)/2), (1/(a_i a_j))^(1/20) and
    (1/(s_i s_j))^(1/40); half of the tokens to remove go from one side of the bipartition to the
    other and half back. The mean is weighted by attention. Attention is that which is paid now, not
    that of the next block.
    """
    similarity, left, right = _bipartite(tokens.x)
    repel = (tokens.importance + _LEAST).log() / 20 + tokens.sizes[..., 0].log() / 40
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
        weight=_attended(tokens),
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


def fisher(tokens: Tokens, keep: int) -> Choice:
    """Those go whose merging changes the model's answer least, to second order.

    Moving a token by d changes the answer by about ½ dᵀF d nats, F = E[g gᵀ] with g the gradient at
    the token. Here `importance` stands for |g| and `keys` for coordinates F^¼ x, and of each token
    the price is |g|²·δ², δ the distance to the nearest token of more importance (the decision value
    of density-peak clustering: Rodriguez & Laio, 2014). The cheapest go and join the nearest that
    stays; the mean is weighted by importance. Only the least important tokens, twice as many as
    have to go, are candidates.
    """
    count = tokens.x.shape[1]
    removed = count - keep
    order = descending(tokens.importance)
    points, importance = rows(tokens.keys, order), rows(tokens.importance, order)
    safe = max(1, keep - removed)
    place = torch.arange(count, device=order.device)
    lesser = torch.where(place >= place[safe:, None], _FAR, 0.0)  # these, and the token itself
    distance = (_squared_distances(points[:, safe:], points) + lesser).amin(-1)
    ranked = descending(importance[:, safe:].square() * distance) + safe
    stay = keep - safe
    sure = place[:safe].expand(order.shape[0], safe)
    kept, gone = torch.cat([sure, ranked[:, :stay]], 1), ranked[:, stay:]
    target = _squared_distances(rows(points, gone), rows(points, kept)).argmin(-1)
    weight = tokens.importance[..., None]
    return Choice(rows(order, kept), rows(order, gone), target, weight=weight)


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
    return {"tome": count // 2, "ppt": count // 2, "mctf": 2}.get(method, 1)


def choice_macs(method: str, count: int, keep: int, channels: int, width: int) -> int:
    """Multiply-accumulates of one step, choice and `combine`, on the `count` patches of one image.

    `channels` of the features; `width` of the keys.
    """
    removed = count - keep
    half, rest = count // 2, count - count // 2
    columns = 1 if method in ("tome", "diffrate") else 2
    matching = {
        "tome": half * rest * width,
        "ppt": half * rest * width,
        "mctf": half * rest * channels,
        "diffrate": removed * keep * channels,
        "fisher": ((count - max(1, keep - removed)) * count + removed * keep) * width,
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


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Between the points of `a` [B, m, d] and `b` [B, n, d]: [B, m, n], never negative."""
    lengths = a.square().sum(-1, keepdim=True) + b.square().sum(-1)[:, None]
    return (lengths - 2 * (a @ b.transpose(1, 2))).clamp_min(0)


def _attended(tokens: Tokens) -> Tensor:
    """Size times attention as a weight [B, n, 1] that never vanishes."""
    return tokens.sizes * (tokens.importance + _LEAST)[..., None]
