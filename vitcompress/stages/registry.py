"""The stages of a chain by their configs. A stage itself needs torch: it is imported on demand.

Another package adds a stage by an entry point of the group `vitcompress.stages`, whose name is the
`type` of its config, and whose value is a package with two modules: `config`, with the frozen
pydantic model `CONFIG`, and `stage`, with the `STAGE`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union

from pydantic import Field

from vitcompress import registry
from vitcompress.errors import InputError
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.tail.config import TailConfig

if TYPE_CHECKING:
    from vitcompress.stages.stage import Stage

PACKAGE = "vitcompress.stages"


def _added() -> list[Any]:
    """The configs of stages that other packages add."""
    found = []
    for module in registry.added(PACKAGE).values():
        try:
            found.append(import_module(f"{module}.config").CONFIG)
        except Exception as error:  # whatever is wrong with a foreign package
            what = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{module}: the stage that it adds cannot be loaded ({what}); mend or uninstall it"
            ) from error
    return found


_Config = TailConfig | PruneConfig | MergeConfig | SparsifyConfig | QuantizeConfig | RecoverConfig
if TYPE_CHECKING:
    StageConfig = Annotated[_Config, Field(discriminator="type")]
else:
    StageConfig = Annotated[Union[(_Config, *_added())], Field(discriminator="type")]
"""What a recipe says of a stage, told apart by `type`, which is also the name of its folder."""

C = TypeVar("C", bound=_Config)


def stage_of(config: C) -> "Stage[C]":
    """The stage that `config` belongs to."""
    home = registry.added(PACKAGE).get(config.type, f"{PACKAGE}.{config.type}")
    stage: Stage[C] = import_module(f"{home}.stage").STAGE
    return stage
