"""The merge stage as its tests run it."""

from typing import Any

from vitcompress.model.architecture import VitModel
from vitcompress.stages.merge.config import MergeConfig


def config(**options: Any) -> MergeConfig:
    return MergeConfig.model_validate({"method": "fisher", **options})


def kept(model: VitModel) -> tuple[int, ...]:
    """How many tokens each block leaves."""
    assert model.architecture.merging is not None
    return model.architecture.merging.kept
