"""Recover: the model answers more like the dense one again, at the same cost.

What a method makes of the model is kept where it is nearer to the dense model on images that the
method has not seen; else the model stays as it was. No labels are needed.
"""

import copy
from dataclasses import replace

from torch import Tensor

from vitcompress.details import Fact
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.storage import as_stored
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.probe import Probe, mean
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.methods import method_of
from vitcompress.stages.stage import Stage, StageResult

_SAME = 1e-6  # a distance, in nats or the like, that rounding alone makes


def recover(model: VitModel, config: RecoverConfig, context: Context) -> StageResult:
    """The model nearer to the dense one, or as it was.

    Raises `InputError` for too few images.
    """
    planned = plan(model, config)
    if "skipped" in planned.facts:
        return planned
    fit, held = _split(config, context)
    judge = _judge(model, held)
    before = judge.distances_of(judge.anatomy.module)
    facts: dict[str, Fact] = {
        **planned.facts,
        "images": len(fit.images),
        "held_back_images": len(held.images),
        f"held_back_{model.task.word}_before": mean(before),
    }
    if mean(before) <= _SAME:
        return _unchanged(model, config, facts, "the model answers as the dense one does already")
    placed_model = replace(model, module=judge.anatomy.module)
    found = method_of(config.method).recover(placed_model, config, fit, judge)
    recovered = as_stored(replace(model, module=copy.deepcopy(found.module).cpu()))
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
    method.check(config)
    if (why := method.obstacle(model)) is None:
        return StageResult(model, facts)
    why = f"{model.architecture.timm}: {why}; it stays as it is"
    told = f"stages.{config.name}: skipped: {why}"
    return StageResult(model, {**facts, "skipped": why}, warnings=(told,))


def _nearer(after: Tensor, before: Tensor) -> bool:
    """Whether distances of images have fallen, in the mean and, as roots, by more than the standard
    error of that; NaN is no gain."""
    gain = before.double().sqrt() - after.double().sqrt()
    return bool(gain.mean() > gain.std() / len(gain) ** 0.5) and mean(after) < mean(before)


def _unchanged(
    model: VitModel, config: RecoverConfig, facts: dict[str, Fact], why: str
) -> StageResult:
    told = f"stages.{config.name}: {why}; it is left as it was"
    return StageResult(model, {**facts, "left_as_it_was": True}, warnings=(told,))


def _split(config: RecoverConfig, context: Context) -> tuple[Context, Context]:
    """The context with the images to fit to, and with those held back."""
    images = context.images
    count = min(len(images), config.images or len(images))
    held = int(count * config.held_back)
    if held < 2 or count - held < 2:
        raise InputError(
            f"stages.{config.name}: {count} calibration images are too few to fit to some and "
            "judge on others; give at least 8"
        )
    return replace(context, calibration=images.subset(range(count))).split(held)


def _judge(model: VitModel, held: Context) -> Probe:
    """Distances of `model`, a copy on the device of `held`, from the dense model."""
    device = held.device
    dense = placed(held.dense.module, device)
    pixels = (batch.to(device) for batch in held.calibration_batches("answers of the dense model"))
    module = copy.deepcopy(model.module).to(device)
    return Probe(anatomy_of(module), pixels, model.task.distance, reference=dense)


STAGE = Stage(recover, plan)
