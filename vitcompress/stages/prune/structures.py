"""The structures that can be narrowed, the bases they are seen in, and what removing them costs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from vitcompress.methods import folding
from vitcompress.methods.compensation import Fit, covariance
from vitcompress.methods.subspace import NormedHeads, query_key_basis, value_basis
from vitcompress.model import anatomy
from vitcompress.model.anatomy import Anatomy, Site
from vitcompress.model.modules.attention import Attention
from vitcompress.model.sizes import attention_weights, fill, gates, size_of
from vitcompress.stages.importance import Importance
from vitcompress.stages.prune.config import PruneConfig, StructureKind
from vitcompress.stages.prune.selected import is_normed, is_selected, selectable
from vitcompress.stages.prune.statistics import QueryKey, SiteMoments
from vitcompress.stages.prune.worth import Key, Saliency


@dataclass
class Axis:
    """One structure of a site, by its name, and what to keep of it costs.

    `order` [groups, units]: units in the order of removal; a group is a head where units lie in
    heads. `sizes`: what may stay of each group, falling from all. `losses` [sizes], rising from 0.
    `into` [units]: of hidden units that are not dropped, which other each joins.
    `normed`: what norms of queries and keys are fitted by, where their dimensions are selected.
    """

    site: str
    kind: StructureKind
    order: Tensor
    sizes: list[int]
    losses: np.ndarray
    into: Tensor | None = None
    normed: NormedHeads | None = None

    @property
    def name(self) -> str:
        """What people read: blocks.3.hidden for the hidden units of blocks.3.mlp."""
        return f"{self.site.rpartition('.')[0]}.{self.kind}"

    @property
    def middle(self) -> int:
        """The option that removes about half of what may go."""
        return min((len(self.sizes) + 1) // 2, len(self.sizes) - 1)

    def groups(self, option: int) -> Tensor | None:
        """The place, among the units that stay, of the one that each has joined, [units]; None
        where units are dropped."""
        if self.into is None:
            return None
        return folding.groups(self.order[0], self.into, self.sizes[option])

    def kept(self, option: int) -> Tensor:
        """The units of each group that stay, [groups, size], in rising order."""
        return self.order[:, self.order.shape[1] - self.sizes[option] :].sort(1).values


def site_kind(kind: StructureKind) -> anatomy.SiteKind:
    """The kind of the sites that a structure lies in."""
    return "mlp" if kind in ("hidden", "mlp") else "attention"


def supported(site: Site, kind: StructureKind) -> bool:
    """Whether `kind` can be narrowed in `site`.

    Norms or gates of mixed values see all dimensions at once; norms of queries and keys can be
    narrowed if they are of a known kind; a refit needs a bias.
    """
    if site.kind != site_kind(kind) or site.last.bias is None:
        return False
    if kind == "hidden":
        return isinstance(site.operator.norm, nn.Identity)
    if site.kind == "mlp":
        return True
    attention: Attention = site.operator
    plain = not is_normed(attention) or selectable(attention)
    mixed = isinstance(attention.norm, nn.Identity) and attention.gate is None
    return {"query_key": plain, "value": mixed, "heads": mixed}.get(kind, True)


def sizes_to_try(site: Site, kind: StructureKind, config: PruneConfig) -> list[int]:
    """Sizes of one structure from all to the floor of it: multiples, but for the first.

    Heads go one by one; a whole attention or MLP is there (1) or not (0).
    """
    if kind in ("attention", "mlp"):
        return [1, 0]
    whole = size_of(site)
    size = whole if isinstance(whole, int) else int(getattr(whole, kind))
    step = config.step(kind, size)
    if kind == "query_key" and site.operator.rotation is not None:
        step += step % 2  # whole pairs
    least = max(step, int(np.ceil(config.floor * size / step - 1e-9)) * step)
    return [size, *range((size - 1) // step * step, least - 1, -step)]


def unmeasured(site: Site, kind: StructureKind, config: PruneConfig) -> Axis:
    """The axis of a structure of which nothing but its sizes is known."""
    sizes = sizes_to_try(site, kind, config)
    nothing = torch.zeros(1, 1, dtype=torch.long)
    return Axis(site.name, kind, nothing, sizes, np.zeros(len(sizes)))


def absorb_layer_scale(sites: Iterable[Site]) -> None:
    """Multiply the LayerScale of every site into its last layer, leaving ones (in place)."""
    for site in sites:
        gamma = getattr(site.scale, "gamma", None)
        if gamma is not None:
            site.last.weight.mul_(gamma[:, None])
            site.last.bias.mul_(gamma)
            gamma.fill_(1)


def rotate(
    anatomy: Anatomy,
    kinds: Iterable[StructureKind],
    moments: SiteMoments,
    importance: Mapping[str, Importance],
) -> None:
    """Turn heads to bases whose dimensions matter less and less, and the moments with them.

    In place; the model computes the same as before.
    """
    for site in anatomy.sites:
        if site.kind != "attention":
            continue
        name, attention = site.name, site.operator
        if "query_key" in kinds and supported(site, "query_key") and not is_selected(attention):
            moments.query_key[name] = _rotate_query_key(attention, moments.query_key[name])
        if "value" in kinds and supported(site, "value"):
            moments.inputs[name] = _rotate_value(
                attention, moments.inputs[name], importance[name].metric
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


def first_rows(site: Site) -> Tensor:
    """What each hidden unit of an MLP is computed by, [units, any], gates and biases included."""
    layer, parts = site.first, 1 + gates(site.block)
    biases = [] if layer.bias is None else list(layer.bias[:, None].chunk(parts))
    return torch.cat([*layer.weight.chunk(parts), *biases], 1).cpu()


def read_masses(site: Site) -> Tensor:
    """What of each hidden unit of an MLP is read: the squares of its column, summed, [units]."""
    return site.last.weight.double().square().sum(0).cpu()


def axes(
    site: Site,
    kinds: Iterable[StructureKind],
    config: PruneConfig,
    found: Saliency,
    fit: Fit,
    metric: Tensor,
    worth: Mapping[Key, Tensor],
) -> list[Axis]:
    """The curves of the structures `kinds` of one site, not yet in distances."""
    made = []
    for kind in kinds:
        if not supported(site, kind):
            continue
        plain = unmeasured(site, kind, config)
        if kind in ("attention", "mlp"):
            made.append(replace(plain, losses=np.array([0.0, 1.0])))
            continue
        units = worth[site.name, kind]
        size = units.shape[1]
        into = None
        if kind == "hidden" and found.fold is not None:
            order, into, steps = found.fold(first_rows(site), read_masses(site))
            order, steps, removed = order[None], steps.cumsum(0), np.arange(size + 1)
        elif kind == "hidden" and found.eliminate is not None and config.compensate:
            step = config.step(kind, size)
            covered = covariance(fit.gram)
            order, steps = found.eliminate(
                covered, site.last.weight.cpu(), metric, step, fit.damping
            )
            order = order[None]
            removed = np.minimum(np.arange(len(steps) + 1) * step, size)
        else:
            order = units.argsort(dim=1, stable=True)
            steps = units.gather(1, order).sum(0).cumsum(0)
            removed = np.arange(size + 1)
        known = np.concatenate([[0.0], steps.numpy()])
        losses = np.interp(size - np.array(plain.sizes), removed, known)
        made.append(replace(plain, order=order, losses=losses, into=into))
    return made
