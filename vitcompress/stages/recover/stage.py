"""Recover: the model answers more like the dense one again, at the same cost.

What a method makes of the model is kept where it is nearer to the dense model on images that
neither the method nor any stage before has seen, for images that a stage was fitted to flatter it;
else the model stays as it was. No labels are needed.
"""

from dataclasses import replace

from torch import Tensor

from vitcompress.details import Fact
from vitcompress.errors import InputError
from vitcompress.memory import copied
from vitcompress.model.architecture import VitModel
from vitcompress.model.storage import as_stored
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.effort import Work
from vitcompress.stages.probe import mean, probe_against_dense
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.methods import method_of
from vitcompress.stages.stage import Stage, StageResult

_ERRORS = 2.0  # that a gain has to be: one, and every sixth change for the worse passed for one
_SAME = 1e-6  # a distance, in nats or the like, that rounding alone makes


def recover(model: VitModel, config: RecoverConfig, context: Context) -> StageResult:
    """The model nearer to the dense one, or as it was.

    Raises `InputError` for too few images.
    """
    planned = plan(model, config)
    if "skipped" in planned.facts:
        return planned
    fit, watched, held = _split(config, context)
    module = copied(model.module).to(context.device)
    own = replace(model, module=module)
    judge = probe_against_dense(own, held)
    before = judge.distances_of(module)
    facts: dict[str, Fact] = {
        **planned.facts,
        "images": len(fit.images),
        "watched_images": len(watched.images),
        "held_back_images": len(held.images),
        f"held_back_{model.task.word}_before": mean(before),
    }
    if mean(before) <= _SAME:
        return _unchanged(model, config, facts, "the model answers as the dense one does already")
    found = method_of(config.method).recover(own, config, fit, watched)
    recovered = as_stored(replace(model, module=copied(found.module).cpu()))
    after = judge.distances_of(placed(recovered.module, context.device))
    if after.isfinite().all():
        facts[f"held_back_{model.task.word}_after"] = mean(after)
    facts |= found.facts
    if not _nearer(after, before):
        why = (
            f"{mean(after):.4g} from the dense model on images held back, after {mean(before):.4g}"
        )
        result = _unchanged(
            model, config, facts, f"nothing is gained that is more than chance: {why}"
        )
        return replace(result, tables=found.tables)
    return StageResult(recovered, facts, found.tables)


def plan(model: VitModel, config: RecoverConfig) -> StageResult:
    """The model itself, since nothing of its shape changes; skipped where the method cannot be
    applied. Raises `InputError` where its options are at odds."""
    method, facts = method_of(config.method), dict[str, Fact](method=config.method)
    method.check(model, config)
    if (why := method.obstacle(model)) is None:
        return StageResult(model, facts)
    why = f"{model.architecture.timm}: {why}; it stays as it is"
    told = f"stages.{config.name}: skipped: {why}"
    return StageResult(model, {**facts, "skipped": why}, warnings=(told,))


def _nearer(after: Tensor, before: Tensor) -> bool:
    """Whether distances of images have fallen, on average and, as roots, by more than `_ERRORS`
    standard errors of that; NaN is no gain."""
    gain = before.double().sqrt() - after.double().sqrt()
    chance = _ERRORS * gain.std() / len(gain) ** 0.5
    return bool(gain.mean() > chance) and mean(after) < mean(before)


def _unchanged(
    model: VitModel, config: RecoverConfig, facts: dict[str, Fact], why: str
) -> StageResult:
    told = f"stages.{config.name}: {why}; it is left as it was"
    return StageResult(model, {**facts, "left_as_it_was": True}, warnings=(told,))


def _split(config: RecoverConfig, context: Context) -> tuple[Context, Context, Context]:
    """The context with the images to learn from, with those to choose by, and with those to judge
    by. The latter two are from its reserve, which no stage before has learned from, where it has
    one."""
    count = min(len(context.images), config.images or len(context.images))
    fit = replace(context, calibration=context.images.subset(range(count)))
    if context.reserve is None:
        fit, held = fit.split(int(count * config.held_back))
    else:
        held = replace(context, calibration=context.reserve)
    if len(held.images) < 4 or len(fit.images) < 2:
        raise InputError(
            f"stages.{config.name}: {count} calibration images are too few to learn from some and "
            f"to judge by a share of {config.held_back:g} of them; give at least 16"
        )
    return fit, *held.split(len(held.images) // 2)


def work(model: VitModel, config: RecoverConfig, images: int) -> Work | None:
    """Each crop of a training goes forward and back, which is three passes, and through the dense
    model; other methods were not counted."""
    if config.method != "distill":
        return None
    return Work(4.0 * config.runs * config.steps * config.batch)


STAGE = Stage(recover, plan, work=work)
