"""How far schedules of merging bring a model from what it was, on calibration images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor

from vitcompress import parallel
from vitcompress.details import Row, Table
from vitcompress.methods.readers import ReaderStatistics, normalised
from vitcompress.model.architecture import blocks_name, merging_blocks
from vitcompress.stages.cache import tensors
from vitcompress.stages.context import BATCH, Context
from vitcompress.stages.merge.scheduling import Schedule, Scheduling
from vitcompress.stages.observe import Watch, observe, readout_loss, unlabelled
from vitcompress.stages.probe import Change, Probe

_READERS = tensors("readers", 1)
_SHARES = (0.95, 0.8, 0.6)  # kept in one block, to measure what that costs
_PROBED = 32  # images for that


class Judge:
    """Tells distances of schedules from the dense model, on `batches` of pixels.

    Only what differs from the incumbent is computed: at first the dense model, then the schedule
    that was accepted last.
    """

    def __init__(
        self, scheduling: Scheduling, batches: Sequence[Tensor], readers: Mapping[str, Tensor]
    ) -> None:
        self.scheduling, self.readers = scheduling, readers
        self.incumbent = scheduling.unmerged
        self.images = sum(map(len, batches))
        task = scheduling.model.task

        def root(output: Tensor, dense: Tensor) -> Tensor:
            return task.distance(output, dense).sqrt()

        self._probe = Probe(scheduling.model.anatomy, parallel.dealt(batches), root)

    def judged(self, kept: Schedule) -> Tensor:
        """The square root of the task's distance, of each image."""
        return cast(Tensor, self.compared(kept))

    def compared(self, kept: Schedule, rival: Tensor | None = None) -> Tensor | None:
        """As `judged`; None as soon as it is clearly worse than `rival`, as in `Probe`."""
        with self._changed(kept) as change:
            return self._probe.distances(change, rival)

    def accept(self, kept: Schedule) -> Tensor:
        """As `judged`; `kept` becomes the incumbent."""
        with self._changed(kept) as change:
            found = self._probe.accept(change)
        self.incumbent = kept
        return found

    @contextmanager
    def _changed(self, kept: Schedule) -> Iterator[Change]:
        module = self._probe.anatomy.module
        row = merging_blocks(module, self.scheduling.merging_to(kept))
        row.fill(self.readers)
        pairs = enumerate(zip(self.incumbent, kept, strict=True))
        first = next((number for number, (old, new) in pairs if old != new), len(kept))
        with self._probe.replaced({blocks_name(module): row}) as change:
            yield change._replace(first=first)


def read(context: Context, images: int) -> Sequence[Tensor]:
    """Up to `images` calibration images, in four batches or more, so that some can be held back."""
    pixels = torch.cat(list(context.shared_batches("reading images", images)))
    parts: tuple[Tensor, ...] = pixels.split(min(BATCH, max(1, len(pixels) // 4)))
    return [part.to(context.device) for part in parts]


def token_readers(scheduling: Scheduling, context: Context, images: int) -> dict[str, Tensor]:
    """The readers of tokens by name, where the method needs them.

    One backward pass through the unmerged model, for what its output means.
    """
    if not scheduling.method.reading.fitted:
        return {}
    anatomy, found = scheduling.model.anatomy, dict[int, ReaderStatistics]()
    rank, cache = scheduling.merging.rank, context.cache
    identity = [scheduling.model.fingerprint(), context.calibration_fingerprint, context.seed]
    identity += [images, scheduling.blocks, rank]
    if (known := cache.get(_READERS, identity)) is not None:
        return {name: reader.to(context.device) for name, reader in known.items()}

    def see(number: int, x: Tensor, _: Tensor, gradient: Tensor | None) -> None:
        patches, their = (t[:, anatomy.prefix_tokens :].cpu() for t in (x, cast(Tensor, gradient)))
        statistics = found.setdefault(number, ReaderStatistics.empty(x.shape[-1]))
        statistics.update(normalised(patches), their)

    sites = [s for s in anatomy.sites if s.kind == "mlp" and s.number < scheduling.blocks]
    watches = [Watch(site.norm_name, partial(see, site.number), "input") for site in sites]
    pixels = context.calibration_batches("measuring gradients", images)
    batches = unlabelled(batch.to(context.device) for batch in pixels)
    loss = readout_loss(scheduling.model.task, torch.Generator().manual_seed(context.seed))
    observe(anatomy.module, watches, batches, loss)
    sums = {n: (s.second, s.within, s.cross) for n, s in found.items()}
    summed = sorted(parallel.summed_each(sums, ReaderStatistics).items())
    readers = {f"reader_{number}": each.solve(rank) for number, each in summed}
    cache.put(_READERS, identity, readers)
    return {name: reader.to(context.device) for name, reader in readers.items()}


@torch.no_grad()
def merge_sensitivities(scheduling: Scheduling, context: Context, images: int) -> Table:
    """By block and share of tokens kept there alone: the mean distance."""
    tensors = token_readers(scheduling, context, images)
    probed = Judge(scheduling, read(context, min(images, _PROBED)), tensors)
    return losses_table(scheduling, losses(probed, context))


BlockLosses = list[dict[float, float]]
"""By block, and by share of the tokens kept in it alone: the mean distance."""


def probed(batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Those of `batches` that losses are measured on."""
    return batches[: _PROBED // len(batches[0])]


def losses(judge: Judge, context: Context) -> BlockLosses:
    scheduling, full = judge.scheduling, judge.scheduling.unmerged
    found = []
    for block in context.track(range(scheduling.blocks), "measuring blocks", scheduling.blocks):
        curve = {}
        for share in _SHARES:
            kept = max(scheduling.fewest(scheduling.tokens), round(share * scheduling.tokens))
            tail = (kept,) * (scheduling.all_blocks - block)
            curve[share] = mean_distance(judge.judged((*full[:block], *tail)))
        found.append(curve)
    return found


def losses_table(scheduling: Scheduling, found: BlockLosses) -> Table:
    names, task = scheduling.model.anatomy.block_names, scheduling.model.task
    rows: list[Row] = [
        {"block": names[block], **{f"{task.word}_at_{s:.0%}": loss for s, loss in curve.items()}}
        for block, curve in enumerate(found)
    ]
    caption = f"{task.distance_words} if this block alone passed on 80 % of its tokens"
    return Table.of("sensitivities", rows, {f"{task.word}_at_80%": caption})


def mean_distance(roots: Tensor) -> float:
    return float(roots.square().mean())


SETTINGS = [_SHARES, _PROBED]
"""All that losses depend on, for the key of what is kept of them."""
