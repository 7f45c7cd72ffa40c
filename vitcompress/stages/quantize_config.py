"""What a recipe says of the quantize stage, and which layers and widths it means."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from vitcompress.errors import InputError
from vitcompress.methods.activations import Kind
from vitcompress.model.architecture import VitModel
from vitcompress.model.layers import Activations
from vitcompress.model.patterns import match
from vitcompress.model.structure import linears, quantized_linears
from vitcompress.stages.importance import BY_GRADIENT, Score
from vitcompress.stages.quantize_layer import Rounding, Style

Bits = Literal[2, 3, 4, 5, 6, 8]
Float = Literal["float16", "float32"]


class BitBudget(BaseModel):
    """A budget for the widths of layers: one of `average`, `bytes` and `max_kl`.

    `average`: mean bits of a weight over the layers with a choice and those pinned to a width.
    `bytes`: of all stored tensors of the model. `max_kl`: nats between the outputs of the float
    model and of the one with rounded weights, on a few calibration images; the smallest model that
    holds it is taken. `widths`: the bits to choose from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    average: Annotated[float, Field(ge=2, le=8)] | None = None
    bytes: Annotated[int, Field(gt=0)] | None = None
    max_kl: Annotated[float, Field(gt=0)] | None = None
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
    softmax: Kind = "log_sqrt2"
    gelu: Literal["uniform", "twin_uniform"] = "uniform"


def _kind(value: object) -> str:
    return "budget" if isinstance(value, (dict, BitBudget)) else "width"


# Told apart before they are read, so that an error is about what was meant.
_Bits = Annotated[
    Annotated[Bits, Tag("width")] | Annotated[BitBudget, Tag("budget")], Discriminator(_kind)
]


class QuantizeConfig(BaseModel):
    """Quantize the weights and the inputs of Linear layers.

    `bits`: the width of all weights, or a budget from which each layer gets its own. `score`: what
    the layers count in that: `lrp` (their relevance), `fisher` (squared gradients), `kl` (measured
    one by one), `uniform` or `random`; times the error that each width leaves. `floor`: the least
    width of the layers of a pattern; `pin`: their exact width whatever the floor, or `float16` or
    `float32` to leave them as they are; of several patterns for a layer the last counts. `layers`:
    patterns over layer names; `skip`: patterns taken out again. `activations`: `static` fixes each
    range from calibration images; `dynamic` takes it at run time from each batch. `rounding`:
    `gptq` feeds each rounding error to the weights not yet rounded; `descent` then improves the
    codes one by one, and the scales. `sequential`: layers below 8 bits are rounded one after the
    other, each fitted to what those before leave of its input; in models whose tokens merge, and
    for `nearest`, each is rounded for the input it had. `group`: how many inputs share a
    multiplier, in codes of 6 bits or less. `fold`: move channel ranges into the neighbouring
    tensors where that lowers the error. `fine`: the share of the layers' multiply-accumulates that
    may be spent once more, on a second 8-bit term of the inputs whose rounding costs most for that
    work; beyond it, in costly layers the class token alone has a second term where that takes away
    most of the cost. `rest`: the type in which matrices that stay float (patch and position
    embeddings, …) are stored; `int8` is for the weights among them, the others have float16 then.
    `simulate`: measure besides what inputs of fewer bits would cost; the model that is exported
    stays the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["quantize"] = "quantize"
    name: str = "quantize"
    bits: _Bits = 8
    score: Score = "lrp"
    floor: dict[str, Bits] = {}
    pin: dict[str, Literal[Bits, Float]] = {}
    activations: Activations = "static"
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("blocks.*",)
    skip: tuple[str, ...] = ()
    rounding: Rounding = "descent"
    sequential: bool = False
    group: Annotated[int, Field(ge=8)] | None = 24
    fold: bool = True
    fine: Annotated[float, Field(ge=0, le=1)] = 0.05
    rest: Literal["float16", "float32", "int8"] = "float32"
    simulate: Simulation | None = None

    @property
    def style(self) -> Style:
        return Style(self.activations, self.rounding, self.group)


def choices(
    model: VitModel, config: QuantizeConfig
) -> tuple[dict[str, tuple[int, ...]], dict[str, Float]]:
    """The widths that each layer to quantize may have, ascending, and the layers that stay float.

    Raises `InputError` for a pattern that matches no layer, a floor that no width reaches, and a
    score that the model does not give.
    """
    names, key = selected(model, config), f"stages.{config.name}"
    if not names:
        raise InputError(f"{key}.skip: leaves no layer to quantize; skip fewer, or drop the stage")
    bits = config.bits
    by_gradient = isinstance(bits, BitBudget) and config.score in BY_GRADIENT
    if by_gradient and quantized_linears(model.module):
        raise InputError(
            f"{key}.score: {config.score} needs gradients, which a model that is quantized already "
            "does not give; quantize in one stage, or take kl"
        )
    every = tuple(sorted(set(bits.widths))) if isinstance(bits, BitBudget) else (bits,)
    floors = dict.fromkeys(names, 0)
    for pattern, least in config.floor.items():
        for name in match([pattern], names, f"{key}.floor"):
            floors[name] = max(floors[name], least)
    allowed: dict[str, tuple[int, ...]] = {
        name: tuple(b for b in every if b >= floors[name]) for name in names
    }
    floats: dict[str, Float] = {}
    for pattern, exact in config.pin.items():
        for name in match([pattern], names, f"{key}.pin"):
            floats.pop(name, None)
            allowed[name] = (8,)
            if isinstance(exact, int):
                allowed[name] = (exact,)
            else:
                floats[name] = exact
    for name, widths in allowed.items():
        if not widths:
            raise InputError(
                f"{key}.floor: {name} needs {floors[name]} bits and the widest choice is "
                f"{every[-1]}; lower the floor, or raise {key}.bits"
            )
    allowed = {name: widths for name, widths in allowed.items() if name not in floats}
    if not allowed:
        raise InputError(f"{key}.pin: leaves no layer to quantize; pin fewer, or drop the stage")
    return allowed, floats


def selected(model: VitModel, config: QuantizeConfig) -> list[str]:
    """The names of the layers that `config` selects, in the order of the model."""
    names, done = list(linears(model.module)), quantized_linears(model.module)
    key = f"stages.{config.name}"
    skipped = set(match(config.skip, names, f"{key}.skip", done))
    chosen = match(config.layers, names, f"{key}.layers", done)
    return [name for name in chosen if name not in skipped]
