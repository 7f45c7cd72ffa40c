"""Which layers a recipe means to quantize, and the widths that each may have."""

from collections.abc import Iterable

from vitcompress.errors import InputError
from vitcompress.methods import codebooks
from vitcompress.model.architecture import VitModel
from vitcompress.stages.quantize.config import BitBudget, Float, QuantizeConfig
from vitcompress.stages.quantize.scores import score_of


def allowed_widths(
    model: VitModel, config: QuantizeConfig
) -> tuple[dict[str, tuple[int, ...]], dict[str, Float]]:
    """The widths that each layer to quantize may have, ascending, and the layers that stay float.

    Raises `InputError` for a pattern that matches no layer, a floor that no width reaches, and a
    score that the model does not give.
    """
    names, key = selected(model, config), f"stages.{config.name}"
    bits, anatomy = config.bits, model.anatomy
    by_gradient = isinstance(bits, BitBudget) and score_of(config.score).gradients
    if by_gradient and anatomy.quantized():
        raise InputError(
            f"{key}.score: {config.score} needs gradients, which a model that is quantized already "
            "does not give; quantize in one stage, or take kl"
        )

    def meant(pattern: str, of: str) -> Iterable[str]:
        return anatomy.select([pattern], f"{key}.{of}", among=names)

    every = tuple(sorted(set(bits.widths))) if isinstance(bits, BitBudget) else (bits,)
    _check_codebook(config.codebook, every, key)
    floors = dict.fromkeys(names, 0)
    for pattern, least in config.floor.items():
        for name in meant(pattern, "floor"):
            floors[name] = max(floors[name], least)
    allowed: dict[str, tuple[int, ...]] = {
        name: tuple(b for b in every if b >= floors[name]) for name in names
    }
    floats: dict[str, Float] = {}
    for pattern, exact in config.pin.items():
        for name in meant(pattern, "pin"):
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


def _check_codebook(name: str, widths: Iterable[int], key: str) -> None:
    """Raise `InputError` where a codebook lacks one of `widths`; those of 8 bits need none."""
    known, asked = codebooks.codebook_of(name).widths, [b for b in widths if b < 8]
    for bits in asked or (8,):
        if bits not in known:
            listed = ", ".join(map(str, known[:-1])) + " or " if known[1:] else ""
            raise InputError(
                f"{key}.codebook: {name} has levels for {listed}{known[-1]} bits, not for {bits}; "
                f"change {key}.bits, or take uniform"
            )


def selected(model: VitModel, config: QuantizeConfig) -> list[str]:
    """The names of the layers that `config` selects, in the order of the model.

    Raises `InputError` for a pattern that matches no layer, and where nothing is left.
    """
    key, anatomy = f"stages.{config.name}", model.anatomy
    chosen = anatomy.select(config.layers, f"{key}.layers")
    if not chosen:
        done = "; what they name is quantized already" if anatomy.quantized() else ""
        raise InputError(
            f"{key}.layers: {', '.join(config.layers)} select no linear layer of this model{done}"
        )
    skipped = set(anatomy.select(config.skip, f"{key}.skip"))
    names = [name for name in chosen if name not in skipped]
    if not names:
        raise InputError(f"{key}.skip: leaves no layer to quantize; skip fewer, or drop the stage")
    return names
