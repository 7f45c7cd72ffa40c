"""What it would cost if each query attended to few keys: of the whole model, of blocks, of heads.

A study: no runtime that the export is for gains from it, and the model stays as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitcompress import parallel
from vitcompress.details import Row, Table
from vitcompress.errors import InputError
from vitcompress.methods.links import Choice, Maps, Moments, channels, cost, low_rank
from vitcompress.model.anatomy import Anatomy, Site
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.modules.attention import Attention
from vitcompress.model.modules.links import FewLinks
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.observe import Watch, observe, unlabelled
from vitcompress.stages.probe import Probe, probe_of
from vitcompress.tasks import Task

_SHARES = (0.5, 0.25, 0.125, 0.0625)  # of the links of each query
_AT = 0.125  # that each block and head is tried at
_IMAGES = 128  # that whole models are compared on

_PART = 8  # of the channels of a head, one in so many dimensions tells its links
_FINDERS: dict[Choice, Callable[[Moments, int], Maps]] = {
    "low_rank": low_rank,
    "channels": channels,
}


class Teller(NamedTuple):
    """What tells which links matter: the `maps` of each attention, by name; without them, the
    logits themselves."""

    how: Choice | None = None
    maps: Mapping[str, Maps] = {}

    @property
    def name(self) -> str:
        return self.how or "exact"

    def sparse(self, site: Site, share: float, head: int | None = None) -> FewLinks:
        return FewLinks(site.operator, share, self.maps.get(site.name), head)

    def cost(self, site: Site, keys: int, share: float) -> float:
        """As `methods.links.cost`, at `site`, where each query has so many `keys`."""
        dims = site.operator.widths[0] // site.operator.num_heads
        return cost(share, keys, dims, self.how, _rank(dims))


class Place(NamedTuple):
    """An attention, or one head of it, and its name in tables."""

    name: str
    site: Site
    head: int | None = None


@torch.no_grad()
def attention_study(model: VitModel, context: Context) -> dict[str, Table]:
    """By name: of all attention at once, the figures of the task by share of links, for each way to
    tell links; then what each block, and each head, would cost alone.

    Raises `InputError` for a model whose attention is not known.
    """
    anatomy, name = anatomy_of(placed(model.module, context.device)), model.architecture.timm
    sites = [site for site in anatomy.sites if isinstance(site.operator, Attention)]
    if not sites:
        raise InputError(f"--attention: the attention of {name} is not known; leave it out")
    tellers = list(_tellers(anatomy, sites, context))
    batches = list(context.shared_batches("reading images", _IMAGES))
    dense = _outputs(anatomy.module, batches, context.device)
    probe = probe_of(anatomy, model.task, context)
    known = [(site, seen.keys) for site in sites if (seen := anatomy.tokens_at(site)) is not None]
    tables = {}
    for teller in tellers:
        rows: list[Row] = []
        for share in context.track(_SHARES, f"links: {teller.name}", len(_SHARES)):
            changed = {site.name: teller.sparse(site, share) for site in sites}
            with probe.replaced(changed) as change:
                outputs = _outputs(change.anatomy.module, batches, context.device)
            figures = model.task.compared(outputs, dense)
            ratio = _mean(teller.cost(site, keys, share) for site, keys in known)
            rows.append({"links": f"{100 * share:g} %", "attention_macs_ratio": ratio, **figures})
        caption = f"{model.task.distance_words} by share of the links that stay in all blocks"
        tables[f"attention {teller.name}"] = Table.of("links", rows, {model.task.word: caption})
    blocks = [Place(site.name.rpartition(".")[0], site) for site in sites]
    tables["attention blocks"] = _alone(probe, blocks, tellers, model.task, context)
    heads = [
        Place(f"{block.name}.head{head}", block.site, head)
        for block in blocks
        for head in range(block.site.operator.num_heads)
    ]
    tables["attention heads"] = _alone(probe, heads, tellers[:1], model.task, context)
    return tables


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _rank(dims: int) -> int:
    return max(1, dims // _PART)


def _tellers(anatomy: Anatomy, sites: list[Site], context: Context) -> Iterator[Teller]:
    found: dict[str, Moments] = {}

    def see(site: Site, _: Tensor, y: Tensor, __: Tensor | None) -> None:
        attention = site.operator
        q, k, _values = y.split(attention.widths, dim=-1)
        q, k = attention.prepared(q, k)
        new = Moments.of(attention.by_head(q), attention.by_head(k))
        old = found.get(site.name)
        found[site.name] = new if old is None else Moments(*map(torch.add, old, new))

    watches = [Watch(site.first_name, partial(see, site)) for site in sites]
    pixels = context.calibration_batches("moments of queries and keys", _IMAGES)
    observe(anatomy.module, watches, unlabelled(batch.to(context.device) for batch in pixels))
    moments = parallel.summed_each(found, Moments)
    yield Teller()
    for how, find in _FINDERS.items():
        yield Teller(how, {name: find(m, _rank(m.keys.shape[-1])) for name, m in moments.items()})


def _outputs(module: nn.Module, batches: list[Tensor], device: torch.device) -> Tensor:
    """What `module` gives for all images; of several processes, each computes its share."""
    own = parallel.dealt(batches)
    return torch.cat(parallel.gathered(module(batch.to(device)) for batch in own))


def _alone(
    probe: Probe, places: list[Place], tellers: list[Teller], task: Task, context: Context
) -> Table:
    """By place: the mean distance if it alone kept `_AT` of its links."""
    rows: list[Row] = []
    for place in context.track(places, "links of each place", len(places)):
        row: Row = {"place": place.name}
        for teller in tellers:
            sparse = teller.sparse(place.site, _AT, place.head)
            row[f"{teller.name}_{task.word}"] = probe.cost({place.site.name: sparse})
        rows.append(row)
    told = f"{task.distance_words} if this place alone kept {_AT:.1%} of its links"
    charted = {
        f"{each.name}_{task.word}": f"{told}, {each.name.replace('_', ' ')}" for each in tellers
    }
    return Table.of("links", rows, charted)
