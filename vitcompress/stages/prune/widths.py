"""Which width of the stream of tokens to choose, when the blocks are narrowed besides."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from vitcompress.console import track
from vitcompress.details import Row
from vitcompress.model.architecture import VitModel
from vitcompress.model.embedding import embedding_width, resize_embedding
from vitcompress.model.sizes import blocks, sizes_of
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.costs import Meter
from vitcompress.stages.prune.embedding import narrowed
from vitcompress.stages.prune.narrowing import loss, sizes_after
from vitcompress.stages.prune.statistics import Branch, branches
from vitcompress.stages.prune.structures import Axis
from vitcompress.stages.prune.study import Study, spend

_WIDTHS = 12  # that are tried, at most

Losses = Mapping[int, float]
"""What each width of the stream costs in nats of KL, 0 for the first, which is the whole."""


@dataclass(frozen=True)
class Stream:
    """The width chosen, and what it was chosen by."""

    width: int
    losses: Losses

    @property
    def full(self) -> int:
        return max(self.losses)

    @property
    def narrower(self) -> bool:
        return self.width < self.full

    def rows(self) -> list[Row]:
        """The row of a report, if there was a choice."""
        if len(self.losses) == 1:
            return []
        halved = max((width for width in self.losses if 2 * width <= self.full), default=None)
        return [
            {
                "structure": "embedding",
                "before": self.full,
                "after": self.width,
                "kept": self.width / self.full,
                "kl_if_halved": None if halved is None else self.losses[halved],
            }
        ]


def widths(model: VitModel, config: PruneConfig) -> list[int]:
    """Widths of the stream to try, falling from that of `model`: multiples, in even steps."""
    full = embedding_width(model.module)
    if "embedding" not in config.structures:
        return [full]
    least = max(2, ceil(config.floor * full))
    below = [width for width in range(config.multiple, full, config.multiple) if width >= least]
    step = max(1, ceil(len(below) / _WIDTHS))
    return [full, *below[::-1][::step]]


def measured_losses(found: Study, model: VitModel, config: PruneConfig) -> Losses:
    """The KL on images held back when the stream alone is narrowed; it never falls."""
    first, *others = widths(model, config)
    measured = [0.0]
    if found.embedding is not None:
        for width in track(others, "measuring widths", len(others)):
            narrow = narrowed(found.module, found.embedding, width, found.compensate)
            measured.append(found.probe.kl_of(narrow))
    return dict(zip([first, *others], np.maximum.accumulate(measured).tolist(), strict=True))


def even_stream(
    model: VitModel, config: PruneConfig, axes: Sequence[Axis], meter: Callable[[int], Meter]
) -> Stream:
    """The width by which the stream is narrowed by about the same share as the blocks.

    `axes` have the losses that `study.even` gives them: those of the stream are as many times that
    of a query-key dimension as the stream costs more.
    """
    tried, times = widths(model, config), 6 * len(blocks(model.module))
    losses = {width: times * (1 - width / tried[0]) ** 2 for width in tried}
    return best_stream(model, config, axes, losses, meter)


def best_stream(
    model: VitModel,
    config: PruneConfig,
    axes: Sequence[Axis],
    losses: Losses,
    meter: Callable[[int], Meter],
) -> Stream:
    """The width at which the budget is met at the least loss, its own and that of the blocks.

    The cost of every branch depends on the width: only for one width after the other can the budget
    be spent branch by branch. Raises `InputError` where the narrowest cannot meet it.
    """
    if len(losses) == 1:
        return Stream(max(losses), losses)
    totals: dict[int, float] = {}
    for width in sorted(losses):
        at = meter(width)
        if totals and _least(model, axes, at) > config.budget.only[1] * at.whole:
            break  # wider ones cost more
        chosen = spend(model, config, axes, at)
        totals[width] = losses[width] + sum(
            loss(own, {a.kind: chosen[a.block][a.kind] for a in own if a.kind in chosen[a.block]})
            for own in _by_branch(axes).values()
        )
    return Stream(min(totals, key=lambda width: (totals[width], -width)), losses)


def _least(model: VitModel, axes: Sequence[Axis], meter: Meter) -> float:
    """The cost when of everything the least is left."""
    own, full = _by_branch(axes), [sizes_of(block) for block in blocks(model.module)]
    total = meter.fixed
    for branch in branches(model.module):
        found = own.get(branch, [])
        choice = {axis.kind: len(axis.sizes) - 1 for axis in found}
        total += ceil(meter.branch(branch, sizes_after(full[branch[0]], found, choice)))
    return total


def _by_branch(axes: Sequence[Axis]) -> dict[Branch, list[Axis]]:
    found: dict[Branch, list[Axis]] = {}
    for axis in axes:
        found.setdefault(axis.branch, []).append(axis)
    return found


def sized(model: VitModel, width: int) -> VitModel:
    """A model like `model` with a stream of `width`, its tensors not there."""
    module = copy.deepcopy(model.module).to("meta")
    if width != embedding_width(module):
        resize_embedding(module, width)
    return replace(model, module=module)
