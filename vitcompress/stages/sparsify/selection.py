"""Which layers a recipe means to sparsify, and the patterns and densities that each may have."""

from typing import cast

from torch import nn

from vitcompress.errors import InputError
from vitcompress.methods.patterns import Pattern, parse_pattern
from vitcompress.methods.sparsity import erdos_renyi_densities
from vitcompress.model.architecture import VitModel
from vitcompress.stages.sparsify.config import MIXED, SparsifyConfig

NM = ("1:4", "2:4", "3:4")  # what `mixed` chooses from, beside dense
GRID = 16  # and what other patterns choose from: so many densities, the last dense
DENSE = (Pattern(), 1.0)


def allowed_sparsities(
    model: VitModel, config: SparsifyConfig
) -> dict[str, list[tuple[Pattern, float]]]:
    """The patterns and densities that each selected layer may have, ascending.

    Raises `InputError` for a model that is quantized, for patterns that match no layer or do not
    fit its shape, and for a density that is missing or has no effect.
    """
    key, anatomy = f"stages.{config.name}", model.anatomy
    chosen = anatomy.select(config.layers, f"{key}.layers")
    if not chosen:
        raise InputError(
            f"{key}.layers: {', '.join(config.layers)} select no linear layer of this model"
        )
    if anatomy.quantized():
        raise InputError(f"{key}: the model is quantized already; put the stage before quantize")
    skipped = set(anatomy.select(config.skip, f"{key}.skip"))
    texts = dict.fromkeys((name for name in chosen if name not in skipped), config.pattern)
    if not texts:
        raise InputError(f"{key}.skip: leaves no layer to sparsify; skip fewer")
    for pattern, text in config.patterns.items():
        for name in anatomy.select([pattern], f"{key}.patterns", among=texts):
            texts[name] = text
    fixed = [name for name, text in texts.items() if text != MIXED and parse_pattern(text).group]
    if len(fixed) == len(texts) and config.density is not None:
        raise InputError(f"{key}.density: {config.pattern} fixes the density; leave the key out")
    if len(fixed) < len(texts) and config.density is None:
        raise InputError(
            f"{key}.density: {config.pattern} needs the share of weights that stays, such as 0.7"
        )
    if MIXED in texts.values() and config.allocation != "distortion":
        raise InputError(f"{key}.allocation: mixed patterns are allocated by distortion")
    linears = {name: cast(nn.Linear, model.module.get_submodule(name)) for name in texts}
    shapes = {n: tuple(linears[n].weight.shape) for n in texts if n not in fixed}
    given = _given_densities(shapes, config)
    found = {}
    for name, text in texts.items():
        found[name] = _allowed(text, config, given.get(name))
        inputs = linears[name].in_features
        for each, _ in found[name]:
            if each.group and inputs % each.group:
                raise InputError(
                    f"{key}.pattern: {text} does not fit {name}: its {inputs} inputs are no "
                    f"multiple of {each.group}; take it out with skip, or give it another "
                    "pattern in patterns"
                )
    return found


def _given_densities(
    shapes: dict[str, tuple[int, ...]], config: SparsifyConfig
) -> dict[str, float]:
    """By layer whose pattern does not fix it, its density, where no distortions have a say."""
    if config.density is None or config.allocation == "distortion":
        return {}
    if config.allocation == "uniform":
        return dict.fromkeys(shapes, config.density)
    return erdos_renyi_densities(shapes, config.density)


def _allowed(text: str, config: SparsifyConfig, given: float | None) -> list[tuple[Pattern, float]]:
    if text == MIXED:
        each = [parse_pattern(nm) for nm in NM]
        return [(p, p.density(1)) for p in each if p.density(1) >= config.floor] + [DENSE]
    pattern = parse_pattern(text)
    if pattern.group:
        return [(pattern, pattern.density(1))]
    if given is not None:
        return [(pattern, given)]
    densities = [step / GRID for step in range(1, GRID + 1)]
    return [(pattern, d) for d in densities if d >= config.floor]
