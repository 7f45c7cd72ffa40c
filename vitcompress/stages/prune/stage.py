"""Prune: a physically narrower network, and layers refitted to make good for what is gone.

Heads are turned to bases in which their last dimensions matter least, and each structure of each
block gets a curve of what its removal costs, as a distance of outputs. The budget is spent where it
costs least, and the layers that remain are refitted in closed form, block after block, towards the
outputs of the dense model. No labels and no training are needed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from vitcompress.details import Fact, Row, Table
from vitcompress.errors import InputError
from vitcompress.measure.latencies import LatencyTable
from vitcompress.memory import copied
from vitcompress.methods.subspace import stream_map
from vitcompress.model.architecture import VitModel
from vitcompress.model.embedding import embedding_width, resize_embedding
from vitcompress.model.families import anatomy_of
from vitcompress.model.sizes import resize_site, size_of, sizes_of
from vitcompress.stages.context import Context
from vitcompress.stages.effort import Work, solving
from vitcompress.stages.prune import costs, embedding, narrowing, structures
from vitcompress.stages.prune.activity import activity_table
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.refit import refit_in_sequence
from vitcompress.stages.prune.structures import Axis
from vitcompress.stages.prune.study import (
    Chosen,
    PruneStudy,
    by_site,
    calibrated,
    checked,
    even,
    on_device,
    spend,
    study,
)
from vitcompress.stages.prune.widths import (
    StreamWidth,
    Width,
    best_stream,
    even_stream,
    measured_losses,
    sized,
)
from vitcompress.stages.stage import Stage, StageResult

_SHARES = (0.125, 0.25, 0.5, 0.75)  # of a structure, whose removal `sensitivity` tells of


def prune(model: VitModel, config: PruneConfig, context: Context) -> StageResult:
    """The narrower model, and what was removed where for the report.

    Raises `InputError` for a model whose blocks cannot be narrowed, for too few images, and for a
    budget that cannot be met.
    """
    plan(model, config)  # what is wrong is told before anything is measured
    asked = config.model_dump_json(exclude={"name", "budget"})  # which no statistics depend on
    found = context.once(model, asked, lambda: study(model, config, context))
    with context.latencies() as table:
        axes, chosen, stream = choose_structures(model, config, found, meters(model, config, table))
    module, distances = rebuilt(model, found, chosen, stream.width, config.compensate)
    (unit, share), word = config.budget.only, model.task.word
    facts: dict[str, Fact] = {"saliency": config.saliency, f"{unit}_budget": share}
    facts |= {f"held_back_{word}_{when}": distance for when, distance in distances.items()}
    rows = [*_rows(axes, chosen, f"{word}_if_halved"), *stream.rows(f"{word}_if_halved")]
    charted = {
        "kept": "Width that is kept of each structure, as a share of its width before",
        f"{word}_if_halved": f"{model.task.distance_words} if this structure alone were halved",
    }
    structures = Table.of("structures", rows, charted)
    tables = structures, activity_table(found.activities)
    return StageResult(described(model, module), facts, tables)


def choose_structures(
    model: VitModel,
    config: PruneConfig,
    found: PruneStudy,
    meter: Callable[[Width], costs.SiteCosts],
) -> tuple[list[Axis], Chosen, StreamWidth]:
    """The axes with calibrated curves, what to remove by them, and the width of the stream.

    Curves are measured once in their middle, and once more where that first choice led.
    """
    sites = model.anatomy.sites
    if config.allocate == "uniform":
        axes = even(found.axes)
        stream = even_stream(model, config, axes, meter)
        return axes, spend(sites, config, axes, meter(stream.width)), stream
    measured = found.measure([[axis.middle] for axis in found.axes])
    axes = [calibrated(*pair) for pair in zip(found.axes, measured, strict=True)]
    losses = measured_losses(found, model, config)
    stream = best_stream(sites, config, axes, losses, meter)
    chosen = spend(sites, config, axes, meter(stream.width))
    options = [chosen[axis.site].get(axis.kind, 0) for axis in axes]
    pairs = zip(options, measured, strict=True)
    again = found.measure([[] if option in seen else [option] for option, seen in pairs])
    measured = [one | other for one, other in zip(measured, again, strict=True)]
    axes = [calibrated(*pair) for pair in zip(found.axes, measured, strict=True)]
    return axes, spend(sites, config, axes, meter(stream.width)), stream


def rebuilt(
    model: VitModel, found: PruneStudy, chosen: Chosen, width: Width, compensate: bool
) -> tuple[nn.Module, dict[str, float]]:
    """What stays of `model`, and how far its output is from that of the dense model, on images held
    back, before and after each refit.

    `width`: of the stream of tokens that stays.
    """
    if width is None and not any(any(choice.values()) for choice in chosen.values()):
        return copied(model.module).cpu(), {"narrowed": 0.0}
    module = _cut(found, chosen, width, compensate)
    distances = {"narrowed": found.probe.cost_of(module)}
    if compensate:
        plain = found.probe.cost_of(_cut(found, chosen, width, False))
        distances = {"not_compensated": plain, **distances}
        refitted = anatomy_of(copied(module))
        batches, into = _marked(found.fit, found.held), None
        if found.embedding is not None and width is not None:
            into = stream_map(found.embedding.basis, width)
        refit_in_sequence(found.anatomy, refitted, batches, found.importance, into)
        distances["refitted"] = found.probe.cost_of(refitted.module)
        if distances["refitted"] < distances["narrowed"]:
            module = refitted.module
    pairs = zip(anatomy_of(module).blocks, model.anatomy.blocks, strict=True)
    for block, before in pairs:
        block.tokens = before.tokens
    return module.cpu(), distances


def _cut(found: PruneStudy, chosen: Chosen, width: Width, compensate: bool) -> nn.Module:
    """The model studied with narrower blocks and a stream of `width`."""
    module = copied(found.module)
    for name, block in (found.narrowed if compensate else found.cut)(chosen).items():
        module.set_submodule(name, block)
    if found.embedding is not None and width is not None:
        module = embedding.narrowed(module, found.embedding, width, compensate)
    return module


def plan(model: VitModel, config: PruneConfig) -> StageResult:
    """A model that meets the budget with all structures narrowed about evenly, tensors empty.

    Which block can spare most only the images tell; a budget of latency is taken as one of
    multiply-accumulates, since nothing is measured.
    """
    kinds = checked(model, config)
    unit, share = config.budget.only
    if unit == "latency":
        counted = config.budget.model_copy(update={"latency": None, "macs": share})
        config = config.model_copy(update={"budget": counted})
    sites = model.anatomy.sites
    axes = even(
        [
            structures.unmeasured(site, kind, config)
            for site in sites
            for kind in kinds
            if structures.supported(site, kind)
        ]
    )
    meter = meters(model, config, LatencyTable())
    try:
        stream = even_stream(model, config, axes, meter)
        chosen = spend(sites, config, axes, meter(stream.width))
    except InputError:
        if unit != "latency":
            raise
        unknown: dict[str, Fact] = {
            "latency_budget": share,
            "widths": "known when latencies are measured",
        }
        return StageResult(model, unknown)
    module = copied(model.module)
    if stream.width is not None:
        resize_embedding(module, stream.width)
    parts = by_site(axes)
    for site in anatomy_of(module).sites:
        own = parts.get(site.name, [])
        after = narrowing.sizes_after(size_of(site), own, chosen.get(site.name, {}))
        resize_site(site.block, site.kind, after)
    facts: dict[str, Fact] = {
        f"{unit}_budget": share,
        "widths": "even; a run chooses them by what the images show",
    }
    return StageResult(described(model, module), facts)


def sensitivity(model: VitModel, config: PruneConfig, context: Context) -> Table:
    """What it costs, as a distance of outputs on images held back, to narrow each structure alone.

    One row a structure of a block; the columns tell the share of it that is removed.
    """
    found, word = study(model, config, context), model.task.word
    wanted = [sorted({axis.middle, len(axis.sizes) - 1}) for axis in found.axes]
    rows: list[Row] = []
    for axis, measured in zip(found.axes, found.measure(wanted), strict=True):
        losses = calibrated(axis, measured).losses
        curve = {size: float(loss) for size, loss in zip(axis.sizes, losses, strict=True)}
        rows.append({"structure": axis.name, "size": axis.sizes[0], **_shares(curve, word)})
    stream = measured_losses(found, model, config)
    if len(stream) > 1:
        rows.append({"structure": "embedding", "size": max(stream), **_shares(stream, word)})
    caption = f"{model.task.distance_words} if half of this structure alone were removed"
    return Table.of("sensitivities", rows, {f"{word}_less_50%": caption})


def _shares(losses: Mapping[int, float], word: str) -> Row:
    """From what sizes cost, falling from the whole, what it costs when shares of it go."""
    row: Row = {}
    for share in _SHARES:
        most = (1 - share) * max(losses)
        size = max((size for size in losses if size <= most), default=None)
        row[f"{word}_less_{100 * share:g}%"] = None if size is None else losses[size]
    return row


def meters(
    model: VitModel, config: PruneConfig, table: LatencyTable
) -> Callable[[Width], costs.SiteCosts]:
    """How a model like `model` with a stream of given width is to be measured."""

    @lru_cache(None)
    def at(width: Width) -> costs.SiteCosts:
        made = model if width is None else sized(model, width)
        return costs.site_costs(made, config.budget.only[0], table)

    return at


def described(model: VitModel, module: nn.Module) -> VitModel:
    """`module` with the description that belongs to it."""
    sizes = tuple(sizes_of(block) for block in anatomy_of(module).blocks)
    changes: dict[str, Any] = {"blocks": sizes}
    if "embedding" not in model.anatomy.refusals:
        width = embedding_width(module)
        if width != embedding_width(model.module):
            changes["embedding"] = width
    architecture = model.architecture.model_copy(update=changes)
    return replace(model, module=module, architecture=architecture)


def _marked(fit: Context, held: Context) -> Iterator[tuple[Tensor, bool]]:
    for context in (fit, held):
        for pixels in on_device(context, "embedding"):
            yield pixels, context is held


def _rows(axes: list[Axis], chosen: Chosen, if_halved: str) -> list[Row]:
    """Each structure: its size before and after, and what halving it alone would cost, a column of
    the name `if_halved`."""
    rows: list[Row] = []
    for axis in axes:
        size = axis.sizes[chosen[axis.site].get(axis.kind, 0)]
        halved = next((i for i, s in enumerate(axis.sizes) if 2 * s <= axis.sizes[0]), None)
        rows.append(
            {
                "structure": axis.name,
                "before": axis.sizes[0],
                "after": size,
                "kept": size / axis.sizes[0],
                if_halved: None if halved is None else float(axis.losses[halved]),
            }
        )
    return rows


def work(model: VitModel, config: PruneConfig, images: int) -> Work:
    """Measured on the embedded model: gradients, moments and refits of all images; each structure
    tried twice, in half of the model on average, on the images held back."""
    sites = model.anatomy.sites
    tried = sum(
        structures.supported(site, kind) for site in sites for kind in checked(model, config)
    )
    last = (site.last for site in sites)
    return Work(10.5 * images + tried * min(64, images // 4), solving(last))


STAGE = Stage(prune, plan, sensitivity, work)
