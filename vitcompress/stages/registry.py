"""The stages of a chain by their configs. A stage itself needs torch: it is imported on demand."""

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field

from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.tail.config import TailConfig

if TYPE_CHECKING:
    from vitcompress.stages.stage import Stage

_Config = TailConfig | PruneConfig | MergeConfig | SparsifyConfig | QuantizeConfig | RecoverConfig
StageConfig = Annotated[_Config, Field(discriminator="type")]
"""What a recipe says of a stage, told apart by `type`, which is also the name of its folder."""

C = TypeVar("C", bound=_Config)


def stage_of(config: C) -> "Stage[C]":
    """The stage that `config` belongs to."""
    stage: Stage[C] = import_module(f"vitcompress.stages.{config.type}.stage").STAGE
    return stage
