"""Streaming statistics of the dense model: what outputs are worth, and moments of inputs.

Memory does not grow with the number of images.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitcompress.methods.compensation import with_constant
from vitcompress.methods.subspace import NormedHeads
from vitcompress.model.anatomy import Anatomy, Site
from vitcompress.model.modules.attention import Attention
from vitcompress.stages.observe import Loss, Sample, Watch, observe, unlabelled
from vitcompress.stages.prune import selected

_HALF = 0.5  # of the weight of tokens follows their importance, the rest is uniform


@dataclass
class Importance:
    """What an output is worth, from gradients of the loss (the Fisher information).

    `metric` [d, d], float64: Σ over tokens of g gᵀ, a mean over images: ½ Δyᵀ M Δy, averaged over
    tokens, is the loss expected of output errors Δy. `prefix`: the share of class and register
    tokens, of which there are `prefix_tokens`, in its trace.
    """

    metric: Tensor
    prefix: float
    prefix_tokens: int

    def token_weights(self, tokens: int) -> Tensor:
        """How much each of `tokens` tokens counts, a mean of 1: half importance, half uniform.

        In late blocks nearly all importance lies on the class token, of which there is one an
        image: too few to fit a layer on alone.
        """
        weights, prefix = torch.full((tokens,), 1 - _HALF), self.prefix_tokens
        if 0 < prefix < tokens:
            weights[:prefix] += _HALF * self.prefix * tokens / prefix
            weights[prefix:] += _HALF * (1 - self.prefix) * tokens / (tokens - prefix)
        else:
            weights += _HALF
        return weights


def importances(
    module: nn.Module,
    layers: Iterable[str],
    batches: Iterable[Sample],
    loss: Loss,
    prefix_tokens: int,
) -> dict[str, Importance]:
    """The importance of the outputs of the `layers` of `module`, by name.

    Outputs are [images, tokens, d], or [images, d] of one token an image.
    """
    names = list(layers)
    metrics = dict.fromkeys(names, torch.zeros((), dtype=torch.float64))
    shares = {name: torch.zeros(2, dtype=torch.float64) for name in names}

    def see(name: str, _: Tensor, __: Tensor, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        gradient = gradient if gradient.ndim == 3 else gradient[:, None]
        energy = gradient.square().sum((0, 2)).double().cpu()
        shares[name] += torch.stack([energy[:prefix_tokens].sum(), energy.sum()])
        flat = gradient.flatten(0, 1)
        metrics[name] = metrics[name] + (flat.T @ flat).double().cpu()

    watches = [Watch(name, partial(see, name), "output") for name in names]
    images = observe(module, watches, batches, loss)
    tiny = torch.finfo(torch.float32).tiny
    return {
        name: Importance(
            metrics[name] / images, float(share[0] / share[1].clamp_min(tiny)), prefix_tokens
        )
        for name, share in shares.items()
    }


@dataclass
class QueryKey:
    """Second moments of queries and of centred keys, [heads, d, d], float64.

    `normed`: of heads whose queries and keys are normed, whose own moments these then are not.
    """

    query: Tensor
    key: Tensor
    normed: NormedHeads | None = None

    def plus(self, other: "QueryKey") -> "QueryKey":
        normed = other.normed
        if normed is not None and self.normed is not None:
            normed = NormedHeads(*(a + b for a, b in zip(self.normed, normed, strict=True)))
        return QueryKey(self.query + other.query, self.key + other.key, normed)


@dataclass
class SiteMoments:
    """`inputs`: by site, Gram matrices [n + 1, n + 1] of what its last layer gets, with a constant
    1 at the end, tokens weighted. `query_key`: of each attention."""

    inputs: dict[str, Tensor]
    query_key: dict[str, QueryKey]


def site_moments(
    anatomy: Anatomy, batches: Iterable[Tensor], importance: dict[str, Importance]
) -> SiteMoments:
    """Moments of what the last layers of all sites get, and of queries and keys.

    `importance`: of the outputs of these layers, by site.
    """
    inputs = dict.fromkeys(importance, torch.zeros((), dtype=torch.float64))
    query_key: dict[str, QueryKey] = {}

    def see_input(name: str, x: Tensor, _: Tensor, __: Tensor | None) -> None:
        x = with_constant(x)
        weighted = x * importance[name].token_weights(x.shape[1]).to(x.device)[:, None]
        gram = weighted.flatten(0, 1).T @ x.flatten(0, 1)
        inputs[name] = inputs[name] + gram.double().cpu()

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
    return SiteMoments(inputs, query_key)


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
