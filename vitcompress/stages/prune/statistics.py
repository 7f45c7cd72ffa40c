"""Streaming statistics of the dense model: moments of what layers get.

Memory does not grow with the number of images.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vitcompress import parallel
from vitcompress.memory import Room, in_memory
from vitcompress.methods.compensation import with_constant
from vitcompress.methods.subspace import NormedHeads
from vitcompress.model.anatomy import Anatomy, Site
from vitcompress.model.modules.attention import Attention
from vitcompress.stages.importance import Importance
from vitcompress.stages.observe import Watch, observe, unlabelled
from vitcompress.stages.prune import selected


@dataclass
class QueryKey:
    """Second moments of queries and of centred keys, [heads, d, d], float64.

    `normed`: of heads whose queries and keys are normed, whose own moments these then are not.
    """

    query: Tensor
    key: Tensor
    normed: NormedHeads | None = None

    @classmethod
    def of(cls, query: Tensor, key: Tensor, *normed: Tensor) -> "QueryKey":
        """From `tensors`."""
        return cls(query, key, NormedHeads(*normed) if normed else None)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.query, self.key, *(self.normed or ()))

    def plus(self, other: "QueryKey") -> "QueryKey":
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return QueryKey.of(*(a + b for a, b in pairs))


@dataclass
class SiteMoments:
    """`inputs`: by site, Gram matrices [n + 1, n + 1] of what its last layer gets, with a constant
    1 at the end, tokens weighted. `query_key`: of each attention."""

    inputs: dict[str, Tensor]
    query_key: dict[str, QueryKey]


def site_moments(
    anatomy: Anatomy,
    batches: Iterable[Tensor],
    importance: dict[str, Importance],
    room: Room = in_memory,
) -> SiteMoments:
    """Moments of what the last layers of all sites get, and of queries and keys.

    `importance`: of the outputs of these layers, by site. `room`: where Gram matrices are kept.
    """
    inputs = dict[str, Tensor]()
    query_key: dict[str, QueryKey] = {}

    def see_input(name: str, x: Tensor, _: Tensor, __: Tensor | None) -> None:
        x = with_constant(x)
        weighted = x * importance[name].token_weights(x.shape[1]).to(x.device)[:, None]
        gram = (weighted.flatten(0, 1).T @ x.flatten(0, 1)).double().cpu()
        inputs[name] = inputs[name].add_(gram) if name in inputs else room(gram)

    def see_heads(site: Site, _: Tensor, y: Tensor, __: Tensor | None) -> None:
        one = _query_key(site.operator, y, importance[site.name])
        seen = query_key.get(site.name)
        query_key[site.name] = one if seen is None else seen.plus(one)

    watches = []
    for site in anatomy.sites:
        watches.append(Watch(site.last_name, partial(see_input, site.name)))
        if site.kind == "attention":
            watches.append(Watch(site.first_name, partial(see_heads, site)))
    observe(anatomy.module, watches, unlabelled(batches))
    moments = {name: each.tensors() for name, each in query_key.items()}
    summed = parallel.summed_each(moments, QueryKey.of)
    return SiteMoments(parallel.summed(inputs), summed)


def _query_key(attention: Attention, qkv: Tensor, importance: Importance) -> QueryKey:
    """Moments that weigh queries by their token's weight and keys by the attention they get.

    An error of a logit matters as far as its key is attended to, and only against the mean over
    keys: keys are centred, within their image (or window) and head, by their weighted mean.
    """
    q, k, _ = qkv.split(attention.widths, -1)
    before = [attention.by_head(t) for t in (q, k)]
    q, k = (attention.by_head(t) for t in attention.prepared(q, k))
    weights = _weights(attention, qkv, importance)
    q = q * weights.sqrt()
    logits = q @ k.transpose(-1, -2) * attention.scale
    logits = logits / weights.sqrt().clamp_min(torch.finfo(q.dtype).tiny)  # 0: a filled window's
    bias = attention.bias_by_head(len(qkv))
    shares = (logits if bias is None else logits + bias).softmax(-1)
    received = ((weights / weights.sum(-2, keepdim=True)).mT @ shares).mT
    k = (k - (received * k).sum(-2, keepdim=True)) * received.sqrt()

    def gram(t: Tensor) -> Tensor:
        return (t.transpose(-1, -2) @ t).sum(0).double().cpu()

    found = None
    if selected.is_normed(attention) and selected.selectable(attention):
        found = selected.query_key_moments(attention, before[0], before[1], weights, received)
    return QueryKey(gram(q), gram(k), found)


def _weights(attention: Attention, qkv: Tensor, importance: Importance) -> Tensor:
    """The weights of tokens as `Attention.by_head` lays them out, [1 or B · windows, 1, N, 1]."""
    if attention.windows is None:
        return importance.token_weights(qkv.shape[1]).to(qkv.device)[None, None, :, None]
    tokens = importance.token_weights(len(attention.windows.inverse)).to(qkv.device)
    parted = attention.windows.parted(tokens[None, :, None])
    return attention.windows.apart(parted.expand(len(qkv), -1, -1))[:, None]
