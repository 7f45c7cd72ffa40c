"""Blocks made of what stays: which sizes a choice gives, and the narrower block itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import cast

import torch
from torch import Tensor

from vitcompress.methods.compensation import Fit, joined, projected
from vitcompress.methods.folding import averages, sums
from vitcompress.model.anatomy import Site
from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.block import Block
from vitcompress.model.sizes import (
    SiteSizes,
    attention_weights,
    fill,
    gates,
    resize_site,
    size_of,
)
from vitcompress.stages.prune.config import StructureKind
from vitcompress.stages.prune.selected import fill_norms, is_normed
from vitcompress.stages.prune.structures import Axis, read_masses

Choice = Mapping[StructureKind, int]
"""An option of each axis of a site, by kind; a kind that is missing stays whole."""


def choices(axes: Sequence[Axis]) -> list[dict[StructureKind, int]]:
    """All ways to choose an option of each of the `axes` of one site, the first leaves all.

    Where the site itself goes, nothing else needs choosing.
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


def sizes_after(full: SiteSizes, axes: Sequence[Axis], choice: Choice) -> SiteSizes | None:
    """The sizes of a site after `choice`; None where it goes."""
    chosen = {axis.kind: axis.sizes[choice[axis.kind]] for axis in axes if axis.kind in choice}
    if 0 in (chosen.get("attention"), chosen.get("mlp")):
        return None
    if isinstance(full, int):
        return chosen.get("hidden", full)
    inner = {kind: size for kind, size in chosen.items() if kind != "attention"}
    return full.model_copy(update=cast(dict[str, int], inner))


def narrow_site(
    site: Site, into: Block, axes: Sequence[Axis], choice: Choice, fit: Fit | None
) -> None:
    """Put what stays of `site` after `choice` into the same site of `into`, a copy of its block.

    With `fit` the last layer is refitted to give what it gave with all inputs; without, what is
    removed just goes. Hidden units that join others are not refitted.
    """
    full = size_of(site)
    sizes = sizes_after(full, axes, choice)
    resize_site(into, site.kind, sizes)
    if sizes is None or sizes == full:
        return
    made = replace(site, block=into)
    if site.kind == "attention":
        rows = _fill_attention(site.operator, made.operator, axes, choice, fit)
    else:
        (axis,) = (axis for axis in axes if axis.kind == "hidden")
        groups = axis.groups(choice["hidden"])
        if groups is not None:
            return _fold(site, made, groups)
        rows = _kept(axes, choice)["hidden"][0]
        parts = torch.arange(1 + gates(site.block))[:, None] * site.last.in_features
        outputs, first = (parts + rows).flatten(), site.first
        fill(made.first, first.weight[outputs], None if first.bias is None else first.bias[outputs])
    if len(rows) < site.last.in_features:
        whole = joined(site.last.weight.cpu(), site.last.bias.cpu())
        left = torch.cat([whole[rows], whole[-1:]])
        found = left if fit is None else projected(fit, whole, rows)
        fill(made.last, found[:-1].T, found[-1])


def _fold(site: Site, made: Site, groups: Tensor) -> None:
    """Fill the MLP `made` with that of `site`, hidden units of a group having become one."""
    first, parts = site.first, 1 + gates(site.block)
    mean, total = averages(groups, read_masses(site)), sums(groups)
    weight = torch.cat([mean @ part.double().cpu() for part in first.weight.chunk(parts)])
    bias = None
    if first.bias is not None:
        bias = torch.cat([mean @ part.double().cpu() for part in first.bias.chunk(parts)])
    fill(made.first, weight, bias)
    fill(made.last, site.last.weight.double().cpu() @ total.T, site.last.bias)


def _fill_attention(
    source: Attention, made: Attention, axes: Sequence[Axis], choice: Choice, fit: Fit | None
) -> Tensor:
    """All of an attention but its last layer; returns the inputs of that which stay."""
    (q, k, v), (q_bias, k_bias, v_bias) = attention_weights(source)
    rows = _dimensions(source, axes, choice, "query_key", len(q))
    values = _dimensions(source, axes, choice, "value", len(v))
    bias = torch.cat([q_bias[rows], k_bias[rows], v_bias[values]])
    weight = torch.cat([q[rows], k[rows], v[values]])
    fill(made.qkv, weight, None if made.qkv.bias is None else bias)
    if source.rotation is not None and made.rotation is not None:
        turns = made.rotation.frequencies
        turns.copy_(source.rotation.frequencies.flatten(1)[:, rows[::2] // 2].view_as(turns))
    table, narrower = source.relative_position_bias_table, made.relative_position_bias_table
    if table is not None and narrower is not None:
        narrower.copy_(table[:, _heads(source, axes, choice)])
    if is_normed(source) and made.widths[0] // made.num_heads < len(q) // source.num_heads:
        axis = next(axis for axis in axes if axis.kind == "query_key")
        dimensions = axis.kept(choice["query_key"])[0]
        fill_norms(source, made, dimensions, None if fit is None else axis.normed)
    return values


def refit_loss(site: Site, axes: Sequence[Axis], fit: Fit, metric: Tensor, gram: Tensor) -> float:
    """The loss ½ tr(M E) of the errors E that the last layer of `site` makes on inputs of the
    Gram matrix `gram`, refitted by `fit` when about half of each structure of `axes` is gone."""
    inner = [axis for axis in axes if axis.kind not in ("attention", "mlp")]
    if not inner:
        return 0.0
    choice: Choice = {axis.kind: axis.middle for axis in inner}
    if site.kind == "mlp":
        rows = _kept(axes, choice)["hidden"][0]
    else:
        rows = _dimensions(site.operator, axes, choice, "value", site.last.in_features)
    if len(rows) == site.last.in_features:
        return 0.0
    lost = joined(site.last.weight.cpu(), site.last.bias.cpu())
    found = projected(fit, lost, rows)
    lost[rows] -= found[:-1]
    lost[-1] -= found[-1]
    return 0.5 * float(((gram @ lost) * (lost @ metric)).sum() / gram[-1, -1])


def _kept(axes: Sequence[Axis], choice: Choice) -> dict[StructureKind, Tensor]:
    return {axis.kind: axis.kept(choice.get(axis.kind, 0)) for axis in axes}


def _heads(attention: Attention, axes: Sequence[Axis], choice: Choice) -> Tensor:
    """The heads that stay."""
    return _kept(axes, choice).get("heads", torch.arange(attention.num_heads)[None])[0]


def _dimensions(
    attention: Attention, axes: Sequence[Axis], choice: Choice, kind: StructureKind, rows: int
) -> Tensor:
    """Which of the `rows` of queries, or of values, stay: dimensions of `kind` in heads that do."""
    heads, size = _heads(attention, axes, choice), rows // attention.num_heads
    every = torch.arange(size).expand(attention.num_heads, -1)
    within = _kept(axes, choice).get(kind, every)
    return (within[heads] + size * heads[:, None]).flatten()
