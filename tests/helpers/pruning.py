"""The prune stage as most of its tests run it."""

from typing import Any

from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import prune
from vitcompress.stages.stage import StageResult


def configured(**options: Any) -> PruneConfig:
    return PruneConfig.model_validate({"budget": {"macs": 0.7}, "multiple": 4, **options})


def run(vit: VitModel, context: Context, **options: Any) -> StageResult:
    return prune(vit, configured(**options), context)
