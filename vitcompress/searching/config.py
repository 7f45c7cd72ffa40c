"""What a recipe says of a search."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from vitcompress.recipe_gates import Section

Cost = Literal["latency", "bytes", "macs"]
"""What is to be small, as a share of the dense model: the time of one image in the target's
runtime on this machine, the size of the ONNX file, or multiply-accumulates."""

Limit = Literal["max_drop.top1", "max.kl", "min.agreement", "min.cosine"]
Limits = Mapping[Limit, float | None]
"""The gates that a search is told beside those of its recipe."""

Choice = dict[str, JsonValue] | None
"""Keys of a stage and what they are instead; None: the chain without the stage."""


class SearchSection(Section):
    """What `vitcompress search` tries: the limits are those of `gates`.

    `minimize`: the cost. `choices`: by the name of a stage, what it may be; the first of each
    together are where the search starts. A budget of multiply-accumulates (`budget.macs`) is here a
    share of what the stage gets, not of the dense model. `images`: how many further calibration
    images candidates are judged on, which no stage has seen.
    """

    minimize: Cost = "latency"
    choices: dict[str, Annotated[tuple[Choice, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    images: Annotated[int, Field(ge=8)] = 256


def settings_of(limits: Limits, minimize: str | None) -> list[str]:
    """What sets these limits (None: not), and the cost, in a recipe."""
    told = [f"gates.{gate}={value}" for gate, value in limits.items() if value is not None]
    return told if minimize is None else [*told, f"search.minimize={minimize}"]
