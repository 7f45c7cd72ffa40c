"""The structures that can be narrowed, the bases they are seen in, and what each unit is worth."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vitcompress.methods import saliency
from vitcompress.methods.compensation import Fit, covariance
from vitcompress.methods.elimination import eliminate
from vitcompress.methods.subspace import NormedHeads, query_key_basis, value_basis
from vitcompress.model.layers import Attention, Block
from vitcompress.model.sizes import attention_weights, blocks, fill, gates, sizes_of
from vitcompress.stages.prune.config import Kind, PruneConfig
from vitcompress.stages.prune.selected import (
    is_normed,
    is_selected,
    selectable,
    tied_worth,
)
from vitcompress.stages.prune.statistics import (
    Branch,
    Importance,
    Moments,
    QueryKey,
    Sample,
    backward_passes,
    hooked,
    last_layer,
)


@dataclass
class Axis:
    """One structure of one block, and what to keep of it costs.

    `order` [groups, units]: units in the order of removal; a group is a head where units lie in
    heads. `sizes`: what may stay of each group, falling from all. `losses` [sizes], rising from 0.
    `normed`: what norms of queries and keys are fitted by, where their dimensions are selected.
    """

    block: int
    kind: Kind
    order: Tensor
    sizes: list[int]
    losses: np.ndarray
    normed: NormedHeads | None = None

    @property
    def branch(self) -> Branch:
        return self.block, "mlp" if self.kind in ("hidden", "mlp") else "attn"

    def kept(self, option: int) -> Tensor:
        """The units of each group that stay, [groups, size], in rising order."""
        return self.order[:, self.order.shape[1] - self.sizes[option] :].sort(1).values


def supported(block: Block, kind: Kind) -> bool:
    """Whether `kind` can be narrowed in `block`.

    Norms or gates of mixed values see all dimensions at once; norms of queries and keys can be
    narrowed if they are of a known kind; a refit needs a bias.
    """
    attention = cast(Attention | None, block.attn)
    part = "mlp" if kind in ("hidden", "mlp") else "attn"
    if getattr(block, part) is None or last_layer(block, part).bias is None:
        return False
    if kind == "hidden":
        return isinstance(cast(Any, block.mlp).norm, nn.Identity)
    if attention is None or part == "mlp":
        return True
    plain = not is_normed(attention) or selectable(attention)
    mixed = isinstance(attention.norm, nn.Identity) and attention.gate is None
    return {"query_key": plain, "value": mixed, "heads": mixed}.get(kind, True)


def sizes_to_try(block: Block, kind: Kind, multiple: int, floor: float) -> list[int]:
    """Sizes of one structure from all to `floor` of it: multiples of `multiple`, but for the first.

    Heads go one by one; a whole attention or MLP is there (1) or not (0).
    """
    if kind in ("attention", "mlp"):
        return [1, 0]
    sizes = sizes_of(block)
    size = int(cast(int, sizes.hidden if kind == "hidden" else getattr(sizes.attention, kind)))
    step = 1 if kind == "heads" else multiple
    if kind == "query_key" and block.attn.rotation is not None:
        step += step % 2  # whole pairs
    least = max(step, int(np.ceil(floor * size / step - 1e-9)) * step)
    return [size, *range((size - 1) // step * step, least - 1, -step)]


def unmeasured(number: int, kind: Kind, block: Block, config: PruneConfig) -> Axis:
    """The axis of a structure of which nothing but its sizes is known."""
    sizes = sizes_to_try(block, kind, config.multiple, config.floor)
    return Axis(number, kind, torch.zeros(1, 1, dtype=torch.long), sizes, np.zeros(len(sizes)))


def absorb_layer_scale(module: nn.Module) -> None:
    """Multiply the LayerScale of every branch into its last layer, leaving ones (in place)."""
    for block in blocks(module):
        for part, scale in (("attn", block.ls1), ("mlp", block.ls2)):
            gamma = getattr(scale, "gamma", None)
            if gamma is not None and getattr(block, part) is not None:
                layer = last_layer(block, part)
                layer.weight.mul_(gamma[:, None])
                layer.bias.mul_(gamma)
                gamma.fill_(1)


def rotate(
    module: nn.Module,
    kinds: Iterable[Kind],
    moments: Moments,
    importance: Mapping[Branch, Importance],
) -> None:
    """Turn heads to bases whose dimensions matter less and less, and the moments with them.

    In place; the model computes the same as before.
    """
    for number, block in enumerate(blocks(module)):
        attention = cast(Attention | None, block.attn)
        if attention is None:
            continue
        if "query_key" in kinds and supported(block, "query_key") and not is_selected(attention):
            moments.query_key[number] = _rotate_query_key(attention, moments.query_key[number])
        if "value" in kinds and supported(block, "value"):
            branch = number, "attn"
            moments.inputs[branch] = _rotate_value(
                attention, moments.inputs[branch], importance[branch].metric
            )


def _turn(attention: Attention, maps: Mapping[int, Tensor]) -> None:
    """Apply maps to queries (0), keys (1) or values (2)."""
    weights, biases = attention_weights(attention)
    for part, turn in maps.items():
        turn = turn.to(weights[part])
        weights[part], biases[part] = turn @ weights[part], turn @ biases[part]
    bias = None if attention.qkv.bias is None else torch.cat(biases)
    fill(attention.qkv, torch.cat(weights), bias)


def _rotate_query_key(attention: Attention, found: QueryKey) -> QueryKey:
    pairs = zip(found.query, found.key, strict=True)
    queries, keys, _ = zip(*(query_key_basis(*pair) for pair in pairs), strict=True)
    _turn(attention, {0: torch.block_diag(*queries).T, 1: torch.block_diag(*keys).T})
    query, key = torch.stack(queries), torch.stack(keys)
    return QueryKey(query.mT @ found.query @ query, key.mT @ found.key @ key)


def _rotate_value(attention: Attention, gram: Tensor, metric: Tensor) -> Tensor:
    weight = attention.proj.weight.double().cpu()
    heads = torch.arange(len(gram) - 1).chunk(attention.num_heads)
    turns, backs, _ = zip(
        *(value_basis(gram[i][:, i], weight[:, i], metric) for i in heads), strict=True
    )
    _turn(attention, {2: torch.block_diag(*turns).T})
    attention.proj.weight.copy_(weight @ torch.block_diag(*backs).T)
    turn = torch.block_diag(*turns, torch.ones(1, 1))
    turned: Tensor = turn.T @ gram @ turn
    return turned


Worth = dict[tuple[int, Kind], Tensor]
"""What each unit is worth, [groups, units], by block and structure."""


def worths(
    module: nn.Module,
    config: PruneConfig,
    moments: Moments,
    importance: Mapping[Branch, Importance],
    batches: Iterable[Sample],
    seed: int,
) -> Worth:
    """What each dimension in heads and each hidden unit is worth by `config.saliency`.

    A head is worth the sum of its values' dimensions. Gradients are taken over `batches`.
    """
    if config.saliency in ("hessian", "taylor"):
        score = saliency.hessian if config.saliency == "hessian" else saliency.taylor
        flat = {key: score(sums) for key, sums in _gradient_sums(module, batches, seed).items()}
    else:
        generator = torch.Generator().manual_seed(seed)
        flat = {}
        for number, block in enumerate(blocks(module)):
            for kind, tied in _tied_weights(block).items():
                if config.saliency == "random":
                    flat[number, kind] = saliency.random(len(tied[0]), generator)
                elif config.saliency == "magnitude":
                    flat[number, kind] = saliency.magnitude(*tied).cpu()
                else:
                    flat[number, kind] = _energy(number, block, kind, moments, importance)
    found: Worth = {}
    for (number, kind), units in flat.items():
        attention = blocks(module)[number].attn
        groups = 1 if kind == "hidden" or attention is None else attention.num_heads
        units = units.view(groups, -1)
        if kind == "query_key" and attention is not None:
            units = tied_worth(attention, units)
        found[number, kind] = units
        if kind == "value":
            found[number, "heads"] = found[number, kind].sum(1)[None]
    return found


def _tied_weights(block: Block) -> dict[Kind, list[Tensor]]:
    """The weights of each unit, as matrices with a row a unit."""
    found: dict[Kind, list[Tensor]] = {}
    if block.attn is not None:
        q, k, v = attention_weights(block.attn)[0]
        found["query_key"], found["value"] = [q, k], [v, block.attn.proj.weight.T]
    if block.mlp is not None:
        mlp = cast(Any, block.mlp)
        found["hidden"] = [*mlp.fc1.weight.chunk(1 + gates(block)), mlp.fc2.weight.T]
    return found


def _energy(
    number: int,
    block: Block,
    kind: Kind,
    moments: Moments,
    importance: Mapping[Branch, Importance],
) -> Tensor:
    """What each unit adds to the logits of the attention, or to the output of the branch."""
    if kind == "query_key":
        pairs = zip(moments.query_key[number].query, moments.query_key[number].key, strict=True)
        return torch.cat([saliency.logit_energy(*pair) for pair in pairs])
    branch = number, "attn" if kind == "value" else "mlp"
    weight, metric = last_layer(block, branch[1]).weight.cpu(), importance[branch].metric
    return saliency.output_energy(covariance(moments.inputs[branch]), weight, metric)


def _gradient_sums(
    module: nn.Module, batches: Iterable[Sample], seed: int
) -> dict[tuple[int, Kind], Tensor]:
    """Per image, Σ gradient × parameter over what is tied to each unit, [images, units]."""
    sums: dict[tuple[int, Kind], list[Tensor]] = {}

    def add(key: tuple[int, Kind], value: Tensor, gradient: Tensor) -> None:
        held = sums.setdefault(key, [])
        held.append(saliency.tied(value, gradient).cpu())

    def see(number: int, kind: Kind, value: Tensor) -> None:
        # The hook must not hold what holds the hook: that would keep the whole pass in memory.
        value.register_hook(partial(add, (number, kind), value.detach()))

    def see_parts(number: int, widths: Sequence[int], kinds: Sequence[Kind]) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, output: Tensor) -> None:
            values = output.detach()

            def seen(gradient: Tensor) -> None:
                parts = (t.split(list(widths), -1) for t in (values, gradient))
                for kind, *pair in zip(kinds, *parts, strict=True):
                    add((number, kind), *pair)

            output.register_hook(seen)

        return after

    handles = []
    for number, block in enumerate(blocks(module)):
        if block.attn is not None:
            seen = see_parts(number, block.attn.widths, ("query_key", "query_key", "value"))
            handles.append(block.attn.qkv.register_forward_hook(seen))
            handles.append(
                block.attn.proj.register_forward_pre_hook(
                    lambda _, args, number=number: see(number, "value", args[0])
                )
            )
        if block.mlp is not None:
            mlp = cast(Any, block.mlp)
            count = 1 + gates(block)
            seen = see_parts(number, [mlp.fc2.in_features] * count, ["hidden"] * count)
            handles.append(mlp.fc1.register_forward_hook(seen))
            handles.append(
                mlp.fc2.register_forward_pre_hook(
                    lambda _, args, number=number: see(number, "hidden", args[0])
                )
            )
    totals: dict[tuple[int, Kind], list[Tensor]] = {}
    with hooked(handles):
        for _ in backward_passes(module, batches, seed):
            for key, tied in sums.items():  # those of one batch: all parameters of a unit
                totals.setdefault(key, []).append(torch.stack(tied).sum(0))
            sums.clear()
    return {key: torch.cat(parts) for key, parts in totals.items()}


def axes(
    module: nn.Module,
    branch: Branch,
    kinds: Iterable[Kind],
    config: PruneConfig,
    fit: Fit,
    metric: Tensor,
    worth: Worth,
) -> list[Axis]:
    """The curves of the structures `kinds` of one branch, not yet in nats."""
    number, part = branch
    block = blocks(module)[number]
    found = []
    for kind in kinds:
        plain = unmeasured(number, kind, block, config)
        if plain.branch != branch or not supported(block, kind):
            continue
        if kind in ("attention", "mlp"):
            found.append(replace(plain, losses=np.array([0.0, 1.0])))
            continue
        units = worth[number, kind]
        size = units.shape[1]
        if kind == "hidden" and config.saliency == "obs" and config.compensate:
            weight = last_layer(block, part).weight.cpu()
            covered = covariance(fit.gram)
            order, steps = eliminate(covered, weight, metric, config.multiple, fit.damping)
            order = order[None]
            removed = np.minimum(np.arange(len(steps) + 1) * config.multiple, size)
        else:
            order = units.argsort(dim=1, stable=True)
            steps = units.gather(1, order).sum(0).cumsum(0)
            removed = np.arange(size + 1)
        known = np.concatenate([[0.0], steps.numpy()])
        losses = np.interp(size - np.array(plain.sizes), removed, known)
        found.append(replace(plain, order=order, losses=losses))
    return found
