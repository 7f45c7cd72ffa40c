"""What a recipe says of the tail stage."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class TailConfig(BaseModel):
    """Leave out, exactly and for free, what nobody reads: after the last attention only the class
    and register tokens go on to the head. Skipped for models whose head reads more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["tail"] = "tail"
    name: str = "tail"
