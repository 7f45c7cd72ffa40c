"""Prune: a physically narrower network, and layers refitted to make good for what is gone.

Heads are turned to bases in which their last dimensions matter least, and each structure of each
block gets a curve of what its removal costs, in nats of KL. The budget is spent where it costs
least, and the layers that remain are refitted in closed form, block after block, towards the
outputs of the dense model. No labels and no training are needed.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from torch import Tensor, nn

from vitcompress.details import Fact, Row, Table
from vitcompress.errors import InputError
from vitcompress.measure.branches import LatencyTable
from vitcompress.methods.subspace import stream_map
from vitcompress.model.architecture import VitModel
from vitcompress.model.embedding import embedding_width, resize_embedding
from vitcompress.model.sizes import blocks, resize, sizes_of
from vitcompress.stages.context import Context
from vitcompress.stages.prune import costs, embedding, narrowing, structures
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.sequential import refit_in_sequence
from vitcompress.stages.prune.structures import Axis
from vitcompress.stages.prune.study import (
    Chosen,
    Study,
    calibrated,
    checked,
    even,
    on_device,
    spend,
    study,
)
from vitcompress.stages.prune.widths import (
    Stream,
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
    found = study(model, config, context)
    with context.latencies() as table:
        axes, chosen, stream = choose(model, config, found, meters(model, config, table))
    module, kl = rebuilt(model, found, chosen, stream.width, config.compensate)
    unit, share = config.budget.only
    facts: dict[str, Fact] = {"saliency": config.saliency, f"{unit}_budget": share}
    facts |= {f"held_back_kl_{when}": nats for when, nats in kl.items()}
    rows = [*_rows(axes, chosen), *stream.rows()]
    structures = Table.of("structures", rows, charted=("kept", "kl_if_halved"))
    return StageResult(described(model, module), facts, (structures,))


def choose(
    model: VitModel, config: PruneConfig, found: Study, meter: Callable[[int], costs.Meter]
) -> tuple[list[Axis], Chosen, Stream]:
    """The axes with calibrated curves, what to remove by them, and the width of the stream.

    Curves are measured once in their middle, and once more where that first choice led.
    """
    if config.allocate == "uniform":
        axes = even(found.axes)
        stream = even_stream(model, config, axes, meter)
        return axes, spend(model, config, axes, meter(stream.width)), stream
    measured = found.measure([[(len(axis.sizes) + 1) // 2] for axis in found.axes])
    axes = [calibrated(*pair) for pair in zip(found.axes, measured, strict=True)]
    stream = best_stream(model, config, axes, measured_losses(found, model, config), meter)
    chosen = spend(model, config, axes, meter(stream.width))
    options = [chosen[axis.block].get(axis.kind, 0) for axis in axes]
    pairs = zip(options, measured, strict=True)
    again = found.measure([[] if option in seen else [option] for option, seen in pairs])
    measured = [one | other for one, other in zip(measured, again, strict=True)]
    axes = [calibrated(*pair) for pair in zip(found.axes, measured, strict=True)]
    return axes, spend(model, config, axes, meter(stream.width)), stream


def rebuilt(
    model: VitModel, found: Study, chosen: Chosen, width: int, compensate: bool
) -> tuple[nn.Module, dict[str, float]]:
    """What stays of `model`, and the KL on images held back before and after each refit.

    `width`: of the stream of tokens that stays.
    """
    if width == embedding_width(found.module) and not any(any(c.values()) for c in chosen.values()):
        return copy.deepcopy(model.module).cpu(), {"narrowed": 0.0}
    module = _cut(found, chosen, width, compensate)
    kl = {"narrowed": found.probe.kl_of(module)}
    if compensate:
        kl = {"not_compensated": found.probe.kl_of(_cut(found, chosen, width, False)), **kl}
        refitted = copy.deepcopy(module)
        batches, into = _marked(found.fit, found.held), None
        if found.embedding is not None and width != embedding_width(found.module):
            into = stream_map(found.embedding.basis, width)
        refit_in_sequence(
            found.module, refitted, batches, found.importance, found.prefix_tokens, into
        )
        kl["refitted"] = found.probe.kl_of(refitted)
        if kl["refitted"] < kl["narrowed"]:
            module = refitted
    for block, before in zip(blocks(module), blocks(model.module), strict=True):
        block.tokens = before.tokens
    return module.cpu(), kl


def _cut(found: Study, chosen: Chosen, width: int, compensate: bool) -> nn.Module:
    """The model studied with narrower blocks and a stream of `width`."""
    module = copy.deepcopy(found.module)
    for number, block in (found.narrowed if compensate else found.cut)(chosen).items():
        cast(Any, module).blocks[number] = block
    if found.embedding is not None and width != embedding_width(module):
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
    axes = even(
        [
            structures.unmeasured(number, kind, block, config)
            for number, block in enumerate(blocks(model.module))
            for kind in kinds
            if structures.supported(block, kind)
        ]
    )
    meter = meters(model, config, LatencyTable())
    try:
        stream = even_stream(model, config, axes, meter)
        chosen = spend(model, config, axes, meter(stream.width))
    except InputError:
        if unit != "latency":
            raise
        unknown: dict[str, Fact] = {
            "latency_budget": share,
            "widths": "known when latencies are measured",
        }
        return StageResult(model, unknown)
    module = copy.deepcopy(model.module)
    if stream.narrower:
        resize_embedding(module, stream.width)
    for number, choice in chosen.items():
        block, own = blocks(module)[number], [axis for axis in axes if axis.block == number]
        resize(block, narrowing.sizes_after(sizes_of(block), own, choice))
    facts: dict[str, Fact] = {
        f"{unit}_budget": share,
        "widths": "even; a run chooses them by what the images show",
    }
    return StageResult(described(model, module), facts)


def sensitivity(model: VitModel, config: PruneConfig, context: Context) -> Table:
    """What it costs, in nats of KL on images held back, to narrow each structure alone.

    One row a structure of a block; the columns tell the share of it that is removed.
    """
    found = study(model, config, context)
    middles = [(len(axis.sizes) + 1) // 2 for axis in found.axes]
    wanted = [
        sorted({middle, len(axis.sizes) - 1})
        for axis, middle in zip(found.axes, middles, strict=True)
    ]
    rows: list[Row] = []
    for axis, measured in zip(found.axes, found.measure(wanted), strict=True):
        curve = calibrated(axis, measured)
        row: Row = {"structure": f"blocks.{axis.block}.{axis.kind}"}
        row["size"] = axis.sizes[0]
        for share in _SHARES:
            size = (1 - share) * axis.sizes[0]
            option = next((i for i, s in enumerate(axis.sizes) if s <= size), None)
            row[_less(share)] = None if option is None else float(curve.losses[option])
        rows.append(row)
    stream = measured_losses(found, model, config)
    full = max(stream)
    if len(stream) > 1:
        row = {"structure": "embedding", "size": full}
        for share in _SHARES:
            width = max((w for w in stream if w <= (1 - share) * full), default=None)
            row[_less(share)] = None if width is None else stream[width]
        rows.append(row)
    return Table.of("sensitivities", rows, charted=("kl_less_50%",))


def _less(share: float) -> str:
    return f"kl_less_{100 * share:g}%"


def meters(
    model: VitModel, config: PruneConfig, table: LatencyTable
) -> Callable[[int], costs.Meter]:
    """How a model like `model` with a stream of given width is to be measured."""
    unit, full = config.budget.only[0], embedding_width(model.module)

    @lru_cache(None)
    def at(width: int) -> costs.Meter:
        return costs.meter(model if width == full else sized(model, width), unit, table)

    return at


def described(model: VitModel, module: nn.Module) -> VitModel:
    """`module` with the description that belongs to it."""
    sizes = tuple(sizes_of(block) for block in blocks(module))
    changes: dict[str, Any] = {"blocks": sizes}
    if (width := embedding_width(module)) != embedding_width(model.module):
        changes["embedding"] = width
    architecture = model.architecture.model_copy(update=changes)
    return replace(model, module=module, architecture=architecture)


def _marked(fit: Context, held: Context) -> Iterator[tuple[Tensor, bool]]:
    for context in (fit, held):
        for pixels in on_device(context, "embedding"):
            yield pixels, context is held


def _rows(axes: list[Axis], chosen: Chosen) -> list[Row]:
    """Each structure: its size before and after, and what halving it alone would cost."""
    rows: list[Row] = []
    for axis in axes:
        size = axis.sizes[chosen[axis.block].get(axis.kind, 0)]
        halved = next((i for i, s in enumerate(axis.sizes) if 2 * s <= axis.sizes[0]), None)
        rows.append(
            {
                "structure": f"blocks.{axis.block}.{axis.kind}",
                "before": axis.sizes[0],
                "after": size,
                "kept": size / axis.sizes[0],
                "kl_if_halved": None if halved is None else float(axis.losses[halved]),
            }
        )
    return rows


STAGE = Stage(prune, plan, sensitivity)
