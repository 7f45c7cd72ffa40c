"""What a recipe says must hold in the end."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _no_boolean(value: object) -> object:
    """YAML's `yes` and `on` are booleans, which would otherwise count as 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "must be a number")
    return value


Number = Annotated[float, BeforeValidator(_no_boolean)]
_Limit = Annotated[Number, Field(ge=0)]
_Percent = Annotated[Number, Field(ge=0, le=100)]
_Share = Annotated[Number, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a recipe: its keys are known, and stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MaxDrop(Section):
    """Percentage points that may be lost."""

    top1: _Percent | None = None
    top5: _Percent | None = None
    map: _Percent | None = None
    knn: _Percent | None = None


class Minimum(Section):
    """Figures that must be reached: percent, 0 to 1 for cosines, and times for `speedup`."""

    top1: _Percent | None = None
    top5: _Percent | None = None
    map: _Percent | None = None
    knn: _Percent | None = None
    agreement: _Percent | None = None
    cosine: _Share | None = None
    cosine_p5: _Share | None = None
    neighbours: _Percent | None = None
    speedup: _Limit | None = None


class Maximum(Section):
    """Figures that must not be passed: nats for `kl`, and the bytes of the ONNX file."""

    kl: _Limit | None = None
    relative_error: _Limit | None = None
    bytes: _Limit | None = None


class MaxRatio(Section):
    """Shares of the baseline that must not be passed."""

    bytes: _Limit | None = None
    macs: _Limit | None = None
    params: _Limit | None = None
    latency: _Limit | None = None


class Against(Section):
    """By how much a figure may be worse than in the earlier run that is given as `--against`.

    Percentage points, or shares for cosines, that may be lost; what `kl` and `relative_error` may
    rise by; and for `bytes`, `macs`, `params` and `latency` the share of the earlier run's that
    must not be passed. Latencies are compared as shares of the baseline that each was timed with.
    """

    top1: _Percent | None = None
    top5: _Percent | None = None
    map: _Percent | None = None
    knn: _Percent | None = None
    agreement: _Percent | None = None
    cosine: _Share | None = None
    cosine_p5: _Share | None = None
    neighbours: _Percent | None = None
    kl: _Limit | None = None
    relative_error: _Limit | None = None
    bytes: _Limit | None = None
    macs: _Limit | None = None
    params: _Limit | None = None
    latency: _Limit | None = None


class Gates(Section):
    """What must hold in the end; one gate that fails makes the run fail.

    `against` counts where an earlier run is given; where nothing is set in it, its defaults do.
    """

    max_drop: MaxDrop = MaxDrop()
    min: Minimum = Minimum()
    max: Maximum = Maximum()
    max_ratio: MaxRatio = MaxRatio()
    against: Against = Against()
