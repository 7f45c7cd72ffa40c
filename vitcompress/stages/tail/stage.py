"""Tail: the last block computes only what the head reads. Exact."""

from vitcompress.model.architecture import VitModel
from vitcompress.model.tail import tail_obstacle, tailed
from vitcompress.stages.context import Context
from vitcompress.stages.effort import Work
from vitcompress.stages.stage import Stage, StageResult
from vitcompress.stages.tail.config import TailConfig


def tail(model: VitModel, config: TailConfig, context: Context) -> StageResult:
    """The model that leaves out what nobody reads; `model` itself where its head reads more."""
    return plan(model, config)


def plan(model: VitModel, config: TailConfig) -> StageResult:
    """As `tail`, which needs no images."""
    left = tailed(model)
    if left is None:
        why = f"{model.architecture.timm}: {tail_obstacle(model.anatomy)}; all of it is computed"
        told = f"stages.{config.name}: skipped: {why}"
        return StageResult(model, {"skipped": why}, warnings=(told,))
    return StageResult(left, {"tokens_in_last_block": left.architecture.tail_tokens})


def work(model: VitModel, config: TailConfig, images: int) -> Work:
    """Nothing is computed."""
    return Work()


STAGE = Stage(tail, plan, work=work)
