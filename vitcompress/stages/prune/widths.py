"""Which width of the stream of tokens to choose, when the blocks are narrowed besides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from vitcompress.console import track
from vitcompress.details import Row
from vitcompress.memory import copied
from vitcompress.model.anatomy import Site
from vitcompress.model.architecture import VitModel
from vitcompress.model.embedding import embedding_width, resize_embedding
from vitcompress.model.sizes import size_of
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.costs import SiteCosts
from vitcompress.stages.prune.embedding import narrowed
from vitcompress.stages.prune.narrowing import loss, sizes_after
from vitcompress.stages.prune.structures import Axis
from vitcompress.stages.prune.study import PruneStudy, by_site, spend

_TRIED = 12  # widths, at most

Width = int | None
"""Of the stream; None: it stays as it is."""

WidthLosses = Mapping[int, float]
"""What each width of the stream costs, 0 for the first, which is the whole; empty: no choice."""


@dataclass(frozen=True)
class StreamWidth:
    """The width chosen, and what it was chosen by."""

    width: Width = None
    losses: WidthLosses = field(default_factory=dict)

    def rows(self, if_halved: str) -> list[Row]:
        """The row of a report, if there was a choice; `if_halved`: the name of its last column."""
        if len(self.losses) < 2:
            return []
        full = max(self.losses)
        width = self.width or full
        halved = max((width for width in self.losses if 2 * width <= full), default=None)
        return [
            {
                "structure": "embedding",
                "before": full,
                "after": width,
                "kept": width / full,
                if_halved: None if halved is None else self.losses[halved],
            }
        ]


def widths(model: VitModel, config: PruneConfig) -> list[int]:
    """Widths of the stream to try, falling from that of `model`: multiples, in even steps.

    None where it is not to be narrowed.
    """
    if "embedding" not in config.structures:
        return []
    full = embedding_width(model.module)
    step = config.step("embedding", full)
    least = max(2, ceil(config.floor * full))
    below = [width for width in range(step, full, step) if width >= least]
    return [full, *below[::-1][:: max(1, ceil(len(below) / _TRIED))]]


def measured_losses(found: PruneStudy, model: VitModel, config: PruneConfig) -> WidthLosses:
    """The distance on images held back when the stream alone is narrowed; it never falls."""
    if found.embedding is None:
        return {}
    first, *others = widths(model, config)
    measured = [0.0]
    for width in track(others, "measuring widths", len(others)):
        narrow = narrowed(found.module, found.embedding, width, found.compensate)
        measured.append(found.probe.cost_of(narrow))
    return dict(zip([first, *others], np.maximum.accumulate(measured).tolist(), strict=True))


def even_stream(
    model: VitModel, config: PruneConfig, axes: Sequence[Axis], meter: Callable[[Width], SiteCosts]
) -> StreamWidth:
    """The width by which the stream is narrowed by about the same share as the blocks.

    `axes` have the losses that `study.even` gives them: those of the stream are as many times that
    of a query-key dimension as the stream costs more.
    """
    tried, times = widths(model, config), 6 * len(model.anatomy.blocks)
    losses = {width: times * (1 - width / tried[0]) ** 2 for width in tried}
    return best_stream(model.anatomy.sites, config, axes, losses, meter)


def best_stream(
    sites: Sequence[Site],
    config: PruneConfig,
    axes: Sequence[Axis],
    losses: WidthLosses,
    meter: Callable[[Width], SiteCosts],
) -> StreamWidth:
    """The width at which the budget is met at the least loss, its own and that of the `sites`.

    The cost of every site depends on the width: only for one width after the other can the budget
    be spent site by site. Raises `InputError` where the narrowest cannot meet it.
    """
    if len(losses) <= 1:
        return StreamWidth(None, losses)
    totals: dict[int, float] = {}
    full, parts = max(losses), by_site(axes)
    for width in sorted(losses):
        at = meter(None if width == full else width)
        if totals and _least(sites, parts, at) > config.budget.only[1] * at.whole:
            break  # wider ones cost more
        chosen = spend(sites, config, axes, at)
        totals[width] = losses[width] + sum(loss(own, chosen[n]) for n, own in parts.items())
    best = min(totals, key=lambda width: (totals[width], -width))
    return StreamWidth(None if best == full else best, losses)


def _least(sites: Sequence[Site], axes: Mapping[str, Sequence[Axis]], meter: SiteCosts) -> float:
    """The cost when of everything the least is left."""
    total = meter.fixed
    for site in sites:
        found = axes.get(site.name, [])
        choice = {axis.kind: len(axis.sizes) - 1 for axis in found}
        total += ceil(meter.site(site.name, sizes_after(size_of(site), found, choice)))
    return total


def sized(model: VitModel, width: int) -> VitModel:
    """A model like `model` with a stream of `width`, its tensors not there."""
    module = copied(model.module).to("meta")
    resize_embedding(module, width)
    return replace(model, module=module)
