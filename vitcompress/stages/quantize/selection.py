"""Which layers a recipe means to quantize, and the widths that each may have."""

from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel
from vitcompress.model.patterns import match
from vitcompress.model.structure import linears, quantized_linears
from vitcompress.stages.quantize.config import BY_GRADIENT, BitBudget, Float, QuantizeConfig


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
