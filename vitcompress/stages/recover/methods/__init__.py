"""Methods: ways to bring a model back towards the dense one. One file a method, found by its name.

A file has a `METHOD`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from vitcompress import registry
from vitcompress.details import Fact, Table
from vitcompress.model.architecture import VitModel
from vitcompress.stages.context import Context
from vitcompress.stages.recover.config import RecoverConfig

PACKAGE = __name__


@dataclass(frozen=True)
class Recovered:
    """What a method made of a model: a module of the same description, and what is told of it."""

    module: nn.Module
    facts: Mapping[str, Fact] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()


def no_obstacle(model: VitModel) -> str | None:
    """Of a method for every model."""
    return None


def no_check(model: VitModel, config: RecoverConfig) -> None:
    """Of a method that any config will do for."""


@dataclass(frozen=True)
class Method:
    """A way to recover.

    `recover`: (model, config, fit, watched) → what it made of the model, a copy on the device of
    the run that may be changed in place. `fit`: with the calibration images to learn from, and the
    dense model. `watched`: with others, that no stage has learned from, to choose and to stop by.
    What comes of that is judged on further images.
    `obstacle`: why a model cannot be recovered so, in words that go on "NAME: "; None where it can.
    `check`: raises `InputError` for a config that a model cannot be recovered by.
    """

    recover: Callable[[VitModel, RecoverConfig, Context, Context], Recovered]
    obstacle: Callable[[VitModel], str | None] = no_obstacle
    check: Callable[[VitModel, RecoverConfig], None] = no_check


def method_of(name: str) -> Method:
    return cast(Method, registry.load_module(PACKAGE, name).METHOD)
