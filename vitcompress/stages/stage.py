"""What a stage is, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from torch import nn

from vitcompress.details import Fact, Gallery, Table
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.effort import Work

C = TypeVar("C")


@dataclass(frozen=True)
class Study:
    """Another model, to be measured beside that of the stage and never exported."""

    name: str
    note: str
    module: nn.Module
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True)
class StageResult:
    """The model that a stage leaves, and what is told of it.

    `facts`: in the order in which they are told. `tables`: the first that has a chart explains what
    was chosen; a report shows that one openly. `warnings`: for the report as a whole.
    """

    model: VitModel
    facts: Mapping[str, Fact] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    warnings: tuple[str, ...] = ()
    studies: tuple[Study, ...] = ()

    def table(self, name: str) -> Table:
        """The table of this name. Raises `KeyError` where there is none."""
        return {table.name: table for table in self.tables}[name]


def unknown(model: VitModel, config: Any, images: int) -> Work | None:
    """The work of a stage that was never counted."""
    return None


class Stage(NamedTuple, Generic[C]):
    """What can be done with a config.

    `run`: (model, config, context) → the new model and what is told of it. `plan`: (model, config)
    → a model of the same shape, its tensors not computed, and what is known without images.
    `sensitivity`: (model, config, context) → what each part of the model would cost, the first
    column naming a layer or block; None for a stage without a choice. `work`: (model, config,
    calibration images) → about what `run` computes; None where that is not known.
    """

    run: Callable[[VitModel, C, Context], StageResult]
    plan: Callable[[VitModel, C], StageResult]
    sensitivity: Callable[[VitModel, C, Context], Table] | None = None
    work: Callable[[VitModel, C, int], Work | None] = unknown
