"""Merge: fewer tokens for the same image."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor

from vitcompress.details import Fact, Row, Table
from vitcompress.errors import InputError
from vitcompress.measure.cost import dense_macs
from vitcompress.measure.latencies import LatencyTable
from vitcompress.measure.tokens import schedule_latency, schedule_macs
from vitcompress.memory import copied
from vitcompress.methods import schedule as schedules
from vitcompress.methods.tokens import method_of
from vitcompress.model.architecture import VitModel, output_shape, set_merging, unfilled
from vitcompress.model.merging import Merging
from vitcompress.model.structure import placed
from vitcompress.model.tail import tailed
from vitcompress.stages.context import Context
from vitcompress.stages.effort import Work
from vitcompress.stages.merge.config import MergeBudget, MergeConfig
from vitcompress.stages.merge.judging import merge_sensitivities, token_readers
from vitcompress.stages.merge.mass import by_mass
from vitcompress.stages.merge.pictures import pictures
from vitcompress.stages.merge.rival import compared
from vitcompress.stages.merge.scheduling import Found, Scheduling
from vitcompress.stages.merge.search import search
from vitcompress.stages.probe import PROBED
from vitcompress.stages.stage import Stage, StageResult


def merge(model: VitModel, config: MergeConfig, context: Context) -> StageResult:
    """The model that computes fewer tokens, and what was chosen.

    Raises `InputError` for a model whose blocks or head the method cannot handle, and for a budget
    or a schedule that cannot be met.
    """
    scheduling = _placed(_scheduling(model, config, context), context)
    tensors = token_readers(scheduling, context, config.images)
    if config.block is None and config.schedule in ("search", "random"):
        drawn = config.schedule == "random"
        found = _once(scheduling, search(scheduling, context, config.images, tensors, drawn))
    elif config.schedule == "mass":
        found = _once(scheduling, by_mass(scheduling, context, config.images))
    else:
        found = _given(scheduling, config)
    result = _scheduled(scheduling, found, tensors)
    merged = result.model
    shown = pictures(merged, context)
    merged.module.cpu()
    images, rival = compared(model, merged, context, config.images)
    idle = found.kept == scheduling.unmerged
    told = f"{scheduling.where}: nothing merges, the model is within its budget"
    return replace(
        result,
        facts={**result.facts, **images},
        tables=(*result.tables, *rival),
        galleries=(shown,),
        warnings=(told,) if idle else (),
    )


def plan(model: VitModel, config: MergeConfig) -> StageResult:
    """As `merge`; in place of a search, which needs images, a published shape at its cost.

    A budget of latency is taken as one of multiply-accumulates, since nothing is measured.
    """
    scheduling = _scheduling(model, config)
    return _scheduled(scheduling, _given(scheduling, config))


def sensitivity(model: VitModel, config: MergeConfig, context: Context) -> Table:
    """What merging in one block alone would cost, by the share of its tokens that stay."""
    return merge_sensitivities(_placed(_scheduling(model, config), context), context, config.images)


def _given(scheduling: Scheduling, config: MergeConfig) -> Found:
    """A schedule that needs no images."""
    schedule = config.schedule
    untimed = config.budget is not None and config.budget.latency is not None
    untimed = untimed and scheduling.unit == "macs"  # what it costs is not known yet
    if isinstance(schedule, tuple):
        kept, dropped = scheduling.explicit(schedule)
        return _once(scheduling, Found(kept=kept, dropped=dropped, facts={"schedule": "explicit"}))
    if schedule in schedules.PUBLISHED:
        kept, dropped = scheduling.published(schedule)
        return _once(scheduling, Found(kept=kept, dropped=dropped, facts={"schedule": schedule}))
    if config.block is not None:
        schedule = f"block {config.block}"
        kept = scheduling.alone(config.block, config.tokens)
    elif schedule == "search" and scheduling.method.mixtures:
        kept = scheduling.single(0)
    elif schedule not in schedules.SHAPES:  # which needs images
        kept = scheduling.fitted("published")
        if not untimed and scheduling.cost(kept) > scheduling.limit:
            kept = scheduling.fitted("constant")
    else:
        kept = scheduling.fitted(schedule)
    kept = kept if untimed else scheduling.affordable(kept, schedule)
    return _once(scheduling, Found(kept=kept, facts={"schedule": schedule}))


def _once(scheduling: Scheduling, found: Found) -> Found:
    """What was `found`. Raises `InputError` where it merges more often than the method can."""
    steps = len({scheduling.tokens, *found.kept}) - 1
    if scheduling.method.mixtures and steps > 1:
        raise InputError(
            f"{scheduling.where}.schedule: {scheduling.merging.method} merges in one block, not in "
            f"{steps}; give `block` in its place"
        )
    return found


def _scheduling(model: VitModel, config: MergeConfig, context: Context | None = None) -> Scheduling:
    """What has to be scheduled; latencies are measured only with a `context`.

    Raises `InputError` for a model that cannot merge tokens.
    """
    where, name = f"stages.{config.name}", model.architecture.timm
    model.anatomy.check("merge", where, name)
    blocks = len(model.anatomy.blocks)
    for kind in ("attention", "mlp"):
        if sum(site.kind == kind for site in model.anatomy.sites) < blocks:
            raise InputError(
                f"{where}: a block without its {kind} cannot merge tokens: leave `{kind}` out of "
                "the structures that are pruned"
            )
    if method_of(config.method).mixtures and len(output_shape(model)) > 1:
        raise InputError(
            f"{where}.method: {name} gives features of each patch, which {config.method} mixes; "
            "take fisher"
        )
    if model.architecture.merging is not None:
        raise InputError(f"{where}: the model already merges tokens: leave one merge stage only")
    if model.architecture.factored:
        raise InputError(
            f"{where}: put it before sparsify, whose two products cost less than known"
        )
    if model.architecture.quantized:
        raise InputError(f"{where}: put it before quantize, whose ranges must fit merged tokens")
    if model.architecture.tail_tokens is None:
        model = tailed(model) or model
    budget = config.budget or MergeBudget(macs=1)
    merging = Merging(
        method=config.method,
        kept=(model.anatomy.tokens,) * blocks,
        proportional=config.proportional,
        unmixed=int(method_of(config.method).unmixed * blocks),
    )
    dense = dense_macs(model)
    share = cast(float, budget.macs or budget.latency)
    limit = share * dense if config.budget else math.inf
    scheduling = Scheduling(
        where, model, merging, "macs", schedule_macs(model, merging), limit, dense
    )
    if scheduling.blocks == 0:
        raise InputError(
            f"{where}: {name} has one block, which computes nothing after attention but what the "
            "head reads: take the stage out of the recipe"
        )
    if budget.latency is None or context is None:
        return scheduling
    with context.latencies() as table:
        return _timed(scheduling, share, table)


def _placed(scheduling: Scheduling, context: Context) -> Scheduling:
    """`scheduling` with its model on the device of `context`."""
    module = placed(scheduling.model.module, context.device)
    return replace(scheduling, model=replace(scheduling.model, module=module))


def _timed(scheduling: Scheduling, share: float, table: LatencyTable) -> Scheduling:
    """`scheduling` with a budget of latency, measured where it is not in `table`."""
    whole = scheduling.cost(scheduling.unmerged)
    less = replace(scheduling, limit=0.75 * whole)
    mixes = scheduling.method.mixtures
    some = scheduling.merging_to(less.single(0) if mixes else less.fitted("constant"))
    cost = schedule_latency(scheduling.model, some, table)
    dense = table.rest(unfilled(scheduling.model), branches=0.0)
    return replace(scheduling, unit="latency", cost=cost, limit=share * dense, dense=dense)


def _scheduled(
    scheduling: Scheduling, found: Found, tensors: Mapping[str, Tensor] | None = None
) -> StageResult:
    """The model with the schedule that was `found`, and what is told of it."""
    merging = scheduling.merging_to(found.kept, found.dropped)
    module = copied(scheduling.model.module)
    row = set_merging(module, merging)
    if tensors is not None:
        row.fill(tensors)
    architecture = scheduling.model.architecture.model_copy(update={"merging": merging})
    facts: dict[str, Fact] = {
        "method": merging.method,
        f"{scheduling.unit}_ratio": scheduling.cost(found.kept) / scheduling.dense,
        "tokens": scheduling.tokens,
        "kept": ", ".join(map(str, found.kept)),
        **found.facts,
    }
    rows: list[Row] = [
        {"block": name, "kept": count}
        for name, count in zip(scheduling.model.anatomy.block_names, found.kept, strict=True)
    ]
    caption = f"Tokens that each block passes on, of {scheduling.tokens}"
    return StageResult(
        replace(scheduling.model, module=module, architecture=architecture),
        facts,
        (Table.of("blocks", rows, {"kept": caption}), *found.tables),
    )


def work(model: VitModel, config: MergeConfig, images: int) -> Work:
    """Measured on the embedded model: gradients; in a search, candidates and changes of each block
    on all images, and what each block costs alone on a few."""
    count, blocks = min(images, config.images), len(model.anatomy.blocks)
    if config.schedule != "search":
        return Work(3.0 * count)
    return Work((10.0 + 2 * blocks) * count + 1.5 * blocks * min(count, PROBED))


STAGE = Stage(merge, plan, sensitivity, work)
