"""What a recipe says of the quantize stage."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from vitcompress.registry import OneOf
from vitcompress.terms import Activations

Bits = Literal[2, 3, 4, 5, 6, 7, 8]
Float = Literal["float16", "float32"]
RoundingName = Annotated[str, OneOf("vitcompress.stages.quantize.rounding")]
ScoreName = Annotated[str, OneOf("vitcompress.stages.quantize.scores")]
CodebookName = Annotated[str, OneOf("vitcompress.methods.codebooks")]
GridName = Annotated[str, OneOf("vitcompress.methods.grids")]


@dataclass(frozen=True)
class Style:
    """What all layers have in common: see `QuantizeConfig`."""

    activations: Activations
    rounding: str
    group: int | None
    codebook: str


class BitBudget(BaseModel):
    """A budget for the widths of layers: one of `average`, `bytes` and `max_kl`.

    `average`: mean bits of a weight over the layers with a choice and those pinned to a width.
    `bytes`: of all stored tensors of the model. `max_kl`: the task's distance (for classes, nats)
    between the outputs of the float model and of the one with rounded weights, on a few calibration
    images; the smallest model that holds it is taken. `widths`: the bits to choose from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    average: Annotated[float, Field(ge=2, le=8)] | None = None
    bytes: Annotated[int, Field(gt=0)] | None = None
    max_kl: Annotated[float, Field(gt=0, le=1000)] | None = None
    widths: Annotated[tuple[Bits, ...], Field(min_length=1)] = (3, 4, 5, 6, 8)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [k for k in ("average", "bytes", "max_kl") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError("give one of average, bytes and max_kl")
        return self


class Simulation(BaseModel):
    """Study inputs of `bits` bits, in layers and in the products of attention: measured, not
    exported.

    `softmax`: the quantizer of the weights of attention; `gelu`: that of the inputs of the second
    layer of MLPs. All other inputs are quantized uniformly. Ranges are fixed on calibration images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: Annotated[int, Field(ge=2, le=8)]
    softmax: GridName = "log_sqrt2"
    gelu: Literal["uniform", "twin_uniform"] = "uniform"  # those that hold negative values


def _kind(value: object) -> str:
    return "budget" if isinstance(value, (dict, BitBudget)) else "width"


# Told apart before they are read, so that an error is about what was meant.
_Bits = Annotated[
    Annotated[Bits, Tag("width")] | Annotated[BitBudget, Tag("budget")], Discriminator(_kind)
]


class TimeShare(BaseModel):
    """A share of the time that the quantized layers take, as the target's runtime runs them on this
    machine: one image, one thread."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency: Annotated[float, Field(ge=0, le=1)]


_Residual = Annotated[
    Annotated[float, Field(ge=0, le=1), Tag("share")] | Annotated[TimeShare, Tag("time")],
    Discriminator(lambda value: "time" if isinstance(value, (dict, TimeShare)) else "share"),
]


class QuantizeConfig(BaseModel):
    """Quantize the weights and the inputs of Linear layers.

    `bits`: the width of all weights, or a budget from which each layer gets its own. `score`: what
    the layers count in that: `lrp` (their relevance), `fisher` (squared gradients), `kl` (measured
    one by one), `uniform` or `random`; times the error that each width leaves. `floor`: the least
    width of the layers of a pattern; `pin`: their exact width whatever the floor, or `float16` or
    `float32` to leave them as they are; of several patterns for a layer the last counts. `layers`:
    patterns over layer names, or `stem`, `blocks` and `head`, which hold for every model, one
    without a head too; `skip`: patterns taken out again. `activations`: `static` fixes each range
    from calibration images; `dynamic` takes it at run time from each batch; `float` quantizes the
    weights alone, which are unpacked when a file is loaded and multiplied in floats. `rounding`:
    `gptq` feeds each rounding error to the weights not yet rounded; `descent` then improves the
    codes one by one, and the scales. `sequential`: layers below 8 bits are rounded one after the
    other, each fitted to what those before leave of its input; in models whose tokens merge, and
    for `nearest`, each is rounded for the input it had. `group`: how many inputs share a
    multiplier, in codes of 6 bits or less. `codebook`: the levels that codes of fewer than 8 bits
    stand for: `uniform`, evenly spaced ones; `power_of_two`; `kmeans`, as many of each layer's own,
    fitted to its weights; `ternary`, for `bits: 2`, in 1.6 bits. `reparametrise`: move channel
    ranges into the neighbouring tensors where that lowers the error. `residual`: the share of the
    layers' multiply-accumulates that may be spent once more, on second 8-bit terms of inputs, of
    all tokens or of those alone that the head reads, chosen to bring the model closest to the float
    one (None:
    0.05, and 0.2 for embeddings); or the share of their `latency`, measured here. `rest`:
    the type in which matrices that stay float (patch and position embeddings, …) are stored; `int8`
    is for the weights among them, the others have float16 then. `simulate`: measure besides what
    inputs of fewer bits would cost; the model that is exported stays the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["quantize"] = "quantize"
    name: str = "quantize"
    bits: _Bits = 8
    score: ScoreName = "lrp"
    floor: dict[str, Bits] = {}
    pin: dict[str, Literal[Bits, Float]] = {}
    activations: Activations = "static"
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("blocks",)
    skip: tuple[str, ...] = ()
    rounding: RoundingName = "descent"
    sequential: bool = False
    group: Annotated[int, Field(ge=8, le=1024)] | None = 24
    codebook: CodebookName = "uniform"
    reparametrise: bool = True
    residual: _Residual | None = None
    rest: Literal["float16", "float32", "int8"] = "float32"
    simulate: Simulation | None = None

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: Any) -> Any:
        for old, new in (("fold", "reparametrise"), ("fine", "residual")):
            if isinstance(data, dict) and old in data:
                raise ValueError(f"{old} is called {new} now; write that")
        return data

    @model_validator(mode="after")
    def _rounds_inputs(self) -> Self:
        if self.activations == "float" and self.residual:
            raise ValueError(
                "residual: second terms are of rounded inputs, which activations: float leaves as "
                "they are; take one of the two out"
            )
        return self

    @property
    def style(self) -> Style:
        return Style(self.activations, self.rounding, self.group, self.codebook)
