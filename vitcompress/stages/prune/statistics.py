"""Streaming statistics of the dense model: what outputs are worth, and moments of inputs.

Memory does not grow with the number of images.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.methods.compensation import with_constant
from vitcompress.methods.saliency import fisher_readout
from vitcompress.methods.subspace import NormedHeads
from vitcompress.model.layers import Attention, Block
from vitcompress.model.sizes import blocks
from vitcompress.stages.prune import selected

Branch = tuple[int, str]
"""The number of a block and `attn` or `mlp`."""

_Key = TypeVar("_Key", bound=Hashable)

_HALF = 0.5  # of the weight of tokens follows their importance, the rest is uniform


def last_layer(block: Block, part: str) -> nn.Linear:
    """The Linear that ends a branch: `proj` of the attention, `fc2` of the MLP."""
    owner = cast(Any, block.attn if part == "attn" else block.mlp)
    return cast(nn.Linear, owner.proj if part == "attn" else owner.fc2)


def branches(module: nn.Module) -> list[Branch]:
    """All branches that `module` has, in the order of computation."""
    return [
        (number, part)
        for number, block in enumerate(blocks(module))
        for part in ("attn", "mlp")
        if getattr(block, part) is not None
    ]


@dataclass
class Importance:
    """What the output of a branch is worth, from gradients of the loss (the Fisher information).

    `metric` [d, d], float64: Σ over tokens of g gᵀ, a mean over images: ½ Δyᵀ M Δy, averaged over
    tokens, is the loss expected of output errors Δy. `prefix`: the share of class and register
    tokens in its trace.
    """

    metric: Tensor
    prefix: float

    def token_weights(self, tokens: int, prefix_tokens: int) -> Tensor:
        """How much each of `tokens` tokens counts, a mean of 1: half importance, half uniform.

        In late blocks nearly all importance lies on the class token, of which there is one an
        image: too few to fit a layer on alone.
        """
        weights = torch.full((tokens,), 1 - _HALF)
        if 0 < prefix_tokens < tokens:
            weights[:prefix_tokens] += _HALF * self.prefix * tokens / prefix_tokens
            weights[prefix_tokens:] += _HALF * (1 - self.prefix) * tokens / (tokens - prefix_tokens)
        else:
            weights += _HALF
        return weights


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Remove hooks at the end."""
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


Sample = tuple[Tensor, Tensor | None]
"""A batch of pixels, and the labels to take gradients for; without, the model's own softmax."""


def backward_passes(module: nn.Module, batches: Iterable[Sample], seed: int) -> Iterator[int]:
    """One backward pass a batch; yields the number of images.

    Where no labels are given, the mean of squared gradients is the Fisher information, from random
    directions in the model's own softmax (`saliency.fisher_readout`). With true labels it is the
    empirical one, of the cross-entropy.
    """
    generator = torch.Generator().manual_seed(seed)
    for pixels, labels in batches:
        with torch.enable_grad():
            logits = module(pixels.detach().requires_grad_())
            if labels is None:
                loss = (logits * fisher_readout(logits, generator)).sum()
            else:
                loss = F.cross_entropy(logits, labels.to(logits.device), reduction="sum")
            loss.backward()
        yield len(pixels)


def last_layers(module: nn.Module) -> dict[Branch, nn.Linear]:
    """The layers that end the branches of `module`."""
    found = blocks(module)
    return {branch: last_layer(found[branch[0]], branch[1]) for branch in branches(module)}


def importances(
    module: nn.Module,
    layers: Mapping[_Key, nn.Module],
    batches: Iterable[Sample],
    prefix_tokens: int,
    seed: int,
) -> dict[_Key, Importance]:
    """The importance of the outputs of `layers` of `module`, by their keys.

    Outputs are [images, tokens, d], or [images, d] of one token an image.
    """
    metrics = dict.fromkeys(layers, torch.zeros((), dtype=torch.float64))
    shares = {key: torch.zeros(2, dtype=torch.float64) for key in layers}

    def watch(key: _Key) -> Any:
        def see(gradient: Tensor) -> None:
            gradient = gradient if gradient.ndim == 3 else gradient[:, None]
            energy = gradient.square().sum((0, 2)).double().cpu()
            shares[key] += torch.stack([energy[:prefix_tokens].sum(), energy.sum()])
            flat = gradient.flatten(0, 1)
            metrics[key] = metrics[key] + (flat.T @ flat).double().cpu()

        def after(_: nn.Module, __: Any, output: Tensor) -> None:
            output.register_hook(see)

        return layers[key].register_forward_hook(after)

    with hooked(watch(key) for key in layers):
        images = sum(backward_passes(module, batches, seed))
    tiny = torch.finfo(torch.float32).tiny
    return {
        key: Importance(metrics[key] / images, float(share[0] / share[1].clamp_min(tiny)))
        for key, share in shares.items()
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
class Moments:
    """`inputs`: Gram matrices [n + 1, n + 1] of what the last layer of each branch gets, with a
    constant 1 at the end, tokens weighted. `query_key`: of each block with attention."""

    inputs: dict[Branch, Tensor]
    query_key: dict[int, QueryKey]


def moments(
    module: nn.Module,
    batches: Iterable[Tensor],
    importance: dict[Branch, Importance],
    prefix_tokens: int,
) -> Moments:
    """Moments of the inputs of all branches' last layers, and of queries and keys."""
    zero = torch.zeros((), dtype=torch.float64)
    inputs = dict.fromkeys(importance, zero)
    query_key: dict[int, QueryKey] = {}

    def weights(branch: Branch, x: Tensor) -> Tensor:
        return importance[branch].token_weights(x.shape[1], prefix_tokens).to(x.device)

    def see_input(branch: Branch) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = with_constant(args[0])
            weighted = x * weights(branch, x)[:, None]
            gram = weighted.flatten(0, 1).T @ x.flatten(0, 1)
            inputs[branch] = inputs[branch] + gram.double().cpu()

        return before

    def see_heads(number: int, attention: Attention) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, output: Tensor) -> None:
            one = _query_key(attention, output, weights((number, "attn"), output))
            query_key[number] = query_key[number].plus(one) if number in query_key else one

        return after

    handles = [
        last_layer(blocks(module)[number], part).register_forward_pre_hook(
            see_input((number, part))
        )
        for number, part in importance
    ]
    for number, block in enumerate(blocks(module)):
        if block.attn is not None:
            handles.append(block.attn.qkv.register_forward_hook(see_heads(number, block.attn)))
    with hooked(handles):
        for pixels in batches:
            module(pixels)
    return Moments(inputs, query_key)


def _query_key(attention: Attention, qkv: Tensor, weights: Tensor) -> QueryKey:
    """Moments that weigh queries by `weights` [N] and keys by the attention they get.

    An error of a logit matters as far as its key is attended to, and only against the mean over
    keys: keys are centred, within their image and head, by their weighted mean.
    """

    def by_head(*parts: Tensor) -> list[Tensor]:
        return [t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in parts]

    q, k, _ = qkv.split(attention.widths, -1)
    before = by_head(q, k)
    q, k = by_head(*attention.prepared(q, k))
    q = q * weights.sqrt()[:, None]
    shares = (q @ k.transpose(-1, -2) * attention.scale / weights.sqrt()[:, None]).softmax(-1)
    received = (weights / weights.sum() @ shares)[..., None]
    k = (k - (received * k).sum(-2, keepdim=True)) * received.sqrt()

    def gram(t: Tensor) -> Tensor:
        return (t.transpose(-1, -2) @ t).sum(0).double().cpu()

    found = None
    if selected.is_normed(attention) and selected.selectable(attention):
        found = selected.moments(attention, before[0], before[1], weights, received)
    return QueryKey(gram(q), gram(k), found)
