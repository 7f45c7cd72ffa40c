"""Blocks made of what stays: which sizes a choice gives, and the narrower block itself."""

import copy
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from vitcompress.methods.compensation import Fit, joined, projected
from vitcompress.model.layers import Attention, Block
from vitcompress.model.sizes import BlockSizes, attention_weights, fill, gates, resize, sizes_of
from vitcompress.stages.pruning.config import Kind
from vitcompress.stages.pruning.selected import fill_norms, is_normed
from vitcompress.stages.pruning.statistics import last_layer
from vitcompress.stages.pruning.structures import Axis

Choice = Mapping[Kind, int]
"""An option of each axis of a branch or a block, by kind; a kind that is missing stays whole."""


def choices(axes: Sequence[Axis]) -> list[dict[Kind, int]]:
    """All ways to choose an option of each of the `axes` of one branch, the first leaves all.

    Where the branch itself goes, nothing else needs choosing.
    """
    whole = [axis for axis in axes if axis.kind in ("attention", "mlp")]
    inner = [axis for axis in axes if axis not in whole]
    found = [
        {axis.kind: option for axis, option in zip(inner, each, strict=True)}
        for each in product(*(range(len(axis.sizes)) for axis in inner))
    ]
    return [*found, *({axis.kind: 1} for axis in whole)]


def loss(axes: Sequence[Axis], choice: Choice) -> float:
    """The summed losses of a choice; dimensions in heads count as far as heads stay."""
    by_kind = {axis.kind: axis for axis in axes}
    heads = by_kind.get("heads")
    share = 1.0 if heads is None else heads.sizes[choice.get("heads", 0)] / heads.sizes[0]
    return sum(
        float(by_kind[kind].losses[option]) * (share if kind in ("query_key", "value") else 1)
        for kind, option in choice.items()
    )


def sizes_after(full: BlockSizes, axes: Sequence[Axis], choice: Choice) -> BlockSizes:
    """The sizes of a block after `choice`, which may be of one branch or of both."""
    chosen = {axis.kind: axis.sizes[choice[axis.kind]] for axis in axes if axis.kind in choice}
    attention, hidden = full.attention, chosen.get("hidden", full.hidden)
    if attention is not None:
        inner: dict[str, int] = {
            name: size for name, size in chosen.items() if name in ("heads", "query_key", "value")
        }
        attention = attention.model_copy(update=inner)
    return BlockSizes(
        attention=None if chosen.get("attention") == 0 else attention,
        hidden=None if chosen.get("mlp") == 0 else hidden,
    )


def narrowed(
    block: Block, axes: Sequence[Axis], choice: Choice, fits: Mapping[str, Fit] | None
) -> Block:
    """A copy of `block` after `choice`.

    With `fits`, by branch, the last layers are refitted to give what they gave with all inputs;
    without, what is removed just goes.
    """
    full = sizes_of(block)
    sizes = sizes_after(full, axes, choice)
    made = copy.deepcopy(block)
    resize(made, sizes)

    def fill_last(part: str, rows: Tensor) -> None:
        layer = last_layer(block, part)
        if len(rows) < layer.in_features:
            whole = joined(layer.weight.cpu(), layer.bias.cpu())
            if fits is None:
                found = torch.cat([whole[rows], whole[-1:]])
            else:
                found = projected(fits[part], whole, rows)
            fill(last_layer(made, part), found[:-1].T, found[-1])

    if full.attention and sizes.attention and sizes.attention != full.attention:
        attention = cast(Attention, block.attn)
        (q, k, v), (q_bias, k_bias, v_bias) = attention_weights(attention)
        rows = _dimensions(attention, axes, choice, "query_key", len(q))
        values = _dimensions(attention, axes, choice, "value", len(v))
        bias = torch.cat([q_bias[rows], k_bias[rows], v_bias[values]])
        target = cast(Attention, made.attn).qkv
        weight = torch.cat([q[rows], k[rows], v[values]])
        fill(target, weight, None if target.bias is None else bias)
        if attention.rotation is not None:
            turns = cast(Any, made.attn).rotation.frequencies
            turns.copy_(attention.rotation.frequencies.flatten(1)[:, rows[::2] // 2].view_as(turns))
        if (table := attention.relative_position_bias_table) is not None:
            heads = rows.view(sizes.attention.heads, -1)[:, 0] // full.attention.query_key
            cast(Any, made.attn).relative_position_bias_table.copy_(table[:, heads])
        if is_normed(attention) and sizes.attention.query_key != full.attention.query_key:
            axis = next(axis for axis in axes if axis.kind == "query_key")
            dimensions = axis.kept(choice["query_key"])[0]
            found = None if fits is None else axis.normed
            fill_norms(attention, cast(Attention, made.attn), dimensions, found)
        fill_last("attn", values)
    if sizes.hidden is not None and sizes.hidden != full.hidden:
        rows = _kept(axes, choice)["hidden"][0]
        first, target = cast(Any, block.mlp).fc1, cast(Any, made.mlp).fc1
        parts = torch.arange(1 + gates(block))[:, None] * cast(int, full.hidden)
        outputs = (parts + rows).flatten()
        fill(target, first.weight[outputs], None if first.bias is None else first.bias[outputs])
        fill_last("mlp", rows)
    return made


def error(block: Block, axes: Sequence[Axis], fit: Fit, metric: Tensor, gram: Tensor) -> float:
    """The loss ½ tr(M E) of the errors E that the last layer of a branch makes on inputs of the
    Gram matrix `gram`, refitted by `fit` when about half of each structure of `axes` is gone."""
    inner = [axis for axis in axes if axis.kind not in ("attention", "mlp")]
    if not inner:
        return 0.0
    choice: Choice = {axis.kind: (len(axis.sizes) + 1) // 2 for axis in inner}
    part = inner[0].branch[1]
    layer = last_layer(block, part)
    if part == "mlp":
        rows = _kept(axes, choice)["hidden"][0]
    else:
        rows = _dimensions(cast(Attention, block.attn), axes, choice, "value", layer.in_features)
    if len(rows) == layer.in_features:
        return 0.0
    lost = joined(layer.weight.cpu(), layer.bias.cpu())
    found = projected(fit, lost, rows)
    lost[rows] -= found[:-1]
    lost[-1] -= found[-1]
    return 0.5 * float(((gram @ lost) * (lost @ metric)).sum() / gram[-1, -1])


def _kept(axes: Sequence[Axis], choice: Choice) -> dict[Kind, Tensor]:
    return {axis.kind: axis.kept(choice.get(axis.kind, 0)) for axis in axes}


def _dimensions(
    attention: Attention, axes: Sequence[Axis], choice: Choice, kind: Kind, rows: int
) -> Tensor:
    """Which of the `rows` of queries, or of values, stay: dimensions of `kind` in heads that do."""
    kept = _kept(axes, choice)
    heads = kept.get("heads", torch.arange(attention.num_heads)[None])[0]
    size = rows // attention.num_heads
    within = kept.get(kind, torch.arange(size).expand(attention.num_heads, -1))
    return (within[heads] + size * heads[:, None]).flatten()
