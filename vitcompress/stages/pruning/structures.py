"""The structures that can be narrowed, the curve of each, and the blocks made of what stays."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vitcompress.methods.compensation import covariance, joined, projected
from vitcompress.methods.elimination import eliminate
from vitcompress.methods.subspace import query_key_basis, value_basis
from vitcompress.model.layers import Attention, Block
from vitcompress.model.sizes import Kind, attention_weights, blocks, fill, resize, sizes_of
from vitcompress.stages.pruning.statistics import Importance, Moments, last_layer


@dataclass
class Axis:
    """One structure of one block, and what to keep of it costs.

    `order` [groups, units]: units in the order of removal, one row a head (one row in all for the
    MLP). `sizes`: what may stay of each group, falling, the first being all. `losses` [sizes],
    rising from 0.
    """

    block: int
    kind: Kind
    order: Tensor
    sizes: list[int]
    losses: np.ndarray

    def kept(self, option: int) -> Tensor:
        """The rows that stay, of all groups one after the other, in rising order."""
        groups, units = self.order.shape
        stay = self.order[:, units - self.sizes[option] :].sort(1).values
        return (stay + units * torch.arange(groups)[:, None]).flatten()


def options(size: int, multiple: int, floor: float) -> list[int]:
    """Sizes from `size` down to `floor` of it, all but the first multiples of `multiple`."""
    least = max(multiple, int(np.ceil(floor * size / multiple - 1e-9)) * multiple)
    return [size, *range((size - 1) // multiple * multiple, least - 1, -multiple)]


def supported(block: Block, kind: Kind) -> bool:
    """Whether `kind` can be narrowed in `block`.

    Norms of queries and keys, and norms or gates of mixed values, see all dimensions at once.
    """
    attention = cast(Attention | None, block.attn)
    if kind == "hidden":
        return block.mlp is not None
    if attention is None or not isinstance(attention.qkv, nn.Linear):
        return False
    plain = isinstance(attention.q_norm, nn.Identity) and isinstance(attention.k_norm, nn.Identity)
    mixed = isinstance(attention.norm, nn.Identity) and attention.gate is None
    return plain if kind == "query_key" else mixed


def absorb_layer_scale(module: nn.Module) -> None:
    """Multiply the LayerScale of every branch into its last layer, leaving ones (in place)."""
    for block in blocks(module):
        for part, scale in (("attn", block.ls1), ("mlp", block.ls2)):
            gamma = getattr(scale, "gamma", None)
            if gamma is not None and getattr(block, part) is not None:
                layer = last_layer(block, part)
                layer.weight.mul_(gamma[:, None])
                if layer.bias is not None:
                    layer.bias.mul_(gamma)
                gamma.fill_(1)


def rotate(
    module: nn.Module, kinds: Sequence[Kind], moments: Moments, importance: Mapping[Any, Importance]
) -> dict[tuple[int, Kind], Tensor]:
    """Turn heads to bases whose dimensions matter less and less (in place), moments with them.

    The model computes the same as before. Returns what each dimension is worth, [heads, d], by
    block and kind.
    """
    worth: dict[tuple[int, Kind], Tensor] = {}
    for number, block in enumerate(blocks(module)):
        attention = cast(Attention | None, block.attn)
        if attention is None:
            continue
        (q, k, v), (q_bias, k_bias, v_bias) = attention_weights(attention)
        heads = attention.num_heads
        if "query_key" in kinds and supported(block, "query_key"):
            found = moments.query_key[number]
            bases = [query_key_basis(*pair) for pair in zip(found.query, found.key, strict=True)]
            turn_q = torch.block_diag(*(b[0] for b in bases)).float().T.to(q)
            turn_k = torch.block_diag(*(b[1] for b in bases)).float().T.to(k)
            q, q_bias, k, k_bias = turn_q @ q, turn_q @ q_bias, turn_k @ k, turn_k @ k_bias
            worth[number, "query_key"] = torch.stack([b[2] for b in bases])
        if "value" in kinds and supported(block, "value"):
            gram = moments.inputs[number, "attn"]
            metric = importance[number, "attn"].metric
            each = torch.arange(len(gram) - 1).chunk(heads)
            weight = attention.proj.weight.cpu()
            bases = [value_basis(gram[i][:, i], weight[:, i], metric) for i in each]
            turn = torch.block_diag(*(b[0] for b in bases)).T
            back = torch.block_diag(*(b[1] for b in bases))
            attention.proj.weight.copy_(weight.double() @ back.T)
            v, v_bias = turn.to(v) @ v, turn.to(v) @ v_bias
            turn = torch.block_diag(turn, torch.ones(1, 1))
            moments.inputs[number, "attn"] = turn @ gram @ turn.T
            worth[number, "value"] = torch.stack([b[2] for b in bases]) / float(gram[-1, -1]) / 2
        bias = None if attention.qkv.bias is None else torch.cat([q_bias, k_bias, v_bias])
        fill(attention.qkv, torch.cat([q, k, v]), bias)
    return worth


def axis(
    module: nn.Module,
    number: int,
    kind: Kind,
    moments: Moments,
    importance: Mapping[Any, Importance],
    scores: Tensor | None,
    multiple: int,
    floor: float,
) -> Axis:
    """The curve of one structure.

    `scores` [groups, units] are what each unit is worth; None for the units of an MLP that are
    to be ordered by optimal brain surgery.
    """
    block = blocks(module)[number]
    if scores is None:
        inputs = covariance(moments.inputs[number, "mlp"])
        weight = last_layer(block, "mlp").weight.cpu()
        metric = importance[number, "mlp"].metric
        order, steps = eliminate(inputs, weight, metric, multiple)
        size = len(order)
        removed = np.minimum(np.arange(len(steps) + 1) * multiple, size)
        known = np.concatenate([[0.0], steps.numpy()])
        order = order[None]
    else:
        size = scores.shape[1]
        order = scores.argsort(dim=1, stable=True)
        removed = np.arange(size + 1)
        sums = scores.gather(1, order).sum(0).cumsum(0).double()
        known = np.concatenate([[0.0], sums.numpy()])
    sizes = options(size, multiple, floor)
    losses = np.interp(size - np.array(sizes), removed, known)
    return Axis(number, kind, order, sizes, losses)


def narrowed(
    block: Block, kept: Mapping[Kind, Tensor], grams: Mapping[str, Tensor] | None
) -> Block:
    """A copy of `block` with the rows `kept` of each kind that is named.

    With `grams` (of the inputs of the last layers, by branch) these layers are refitted to give
    what they gave with all inputs; without, what is removed just goes.
    """
    made = copy.deepcopy(block)
    sizes = sizes_of(block)

    def remaining(part: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        layer = last_layer(block, part)
        whole = joined(layer.weight.cpu(), layer.bias.cpu())
        if grams is None:
            found = torch.cat([whole[rows], whole[-1:]])
        else:
            found = projected(grams[part], whole, rows)
        return found[:-1].T, found[-1]

    if "query_key" in kept or "value" in kept:
        attention, target = cast(Attention, block.attn), cast(Attention, made.attn)
        assert sizes.attention is not None
        (q, k, v), (q_bias, k_bias, v_bias) = attention_weights(attention)
        rows = kept.get("query_key", torch.arange(len(q)))
        values = kept.get("value", torch.arange(len(v)))
        heads = sizes.attention.heads
        changed = {"query_key": len(rows) // heads, "value": len(values) // heads}
        resize(
            made,
            sizes.model_copy(update={"attention": sizes.attention.model_copy(update=changed)}),
        )
        bias = None
        if attention.qkv.bias is not None:
            bias = torch.cat([q_bias[rows], k_bias[rows], v_bias[values]])
        fill(target.qkv, torch.cat([q[rows], k[rows], v[values]]), bias)
        if "value" in kept:
            fill(target.proj, *remaining("attn", values))
    if "hidden" in kept:
        rows = kept["hidden"]
        first = cast(Any, block.mlp).fc1
        resize(made, sizes_of(made).model_copy(update={"hidden": len(rows)}))
        mlp = cast(Any, made.mlp)
        fill(mlp.fc1, first.weight[rows], None if first.bias is None else first.bias[rows])
        fill(mlp.fc2, *remaining("mlp", rows))
    return made
