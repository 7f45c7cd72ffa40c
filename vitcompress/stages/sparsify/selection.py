"""Which layers a recipe means to sparsify, and the patterns and densities that each may have."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import nn

from vitcompress.errors import InputError
from vitcompress.methods import factors
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
    fit its shape, and for a density or a rank that is missing or has no effect.
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
    parsed = {text: Pattern() if text == MIXED else parse_pattern(text) for text in texts.values()}
    _check_budget(parsed, config, key)
    linears = {name: cast(nn.Linear, model.module.get_submodule(name)) for name in texts}
    shapes = {name: (each.out_features, each.in_features) for name, each in linears.items()}
    undecided = [name for name, text in texts.items() if not _fixed(parsed[text], config)]
    given = _given_densities({name: shapes[name] for name in undecided}, config)
    found = {}
    for name, text in texts.items():
        shape, take_out = shapes[name], f"take it out with {key}.skip"
        if parsed[text].blocks and name.rpartition(".")[0] in model.architecture.factored:
            raise InputError(f"{key}.layers: {name} is one of two products already; {take_out}")
        if any(size % (parsed[text].blocks or 1) for size in shape):
            raise InputError(
                f"{key}.pattern: {text} does not fit {name}: its {shape[1]} inputs and {shape[0]} "
                f"outputs are no multiples of {parsed[text].blocks}; {take_out}, or give it "
                "another pattern in patterns"
            )
        found[name] = _allowed(text, config, shape, given.get(name))
        for each, density in found[name]:
            if each.group and shape[1] % each.group:
                raise InputError(
                    f"{key}.pattern: {text} does not fit {name}: its {shape[1]} inputs are no "
                    f"multiple of {each.group}; {take_out}, or give it another pattern in patterns"
                )
            if density > 1 or (config.rank and density == 1):
                raise InputError(
                    f"{key}.rank: {config.rank} saves nothing in {name}, whose two products would "
                    f"take {density:.2f} of its multiplications; lower it, or {take_out}"
                )
    return found


def _check_budget(parsed: Mapping[str, Pattern], config: SparsifyConfig, key: str) -> None:
    """Raise `InputError` for keys that the patterns need or do not take."""
    factored = any(pattern.blocks for pattern in parsed.values())
    if config.rank is not None and not factored:
        raise InputError(f"{key}.rank: {config.pattern} has none; leave the key out")
    if config.rank is not None and config.density is not None:
        raise InputError(f"{key}.rank: fixes the density; leave out one of them")
    if factored and config.storage == "dense":
        raise InputError(f"{key}.storage: two products have no zeros to write; leave the key out")
    fixed = [pattern for pattern in parsed.values() if _fixed(pattern, config)]
    if len(fixed) == len(parsed) and config.density is not None:
        raise InputError(f"{key}.density: {config.pattern} fixes the density; leave the key out")
    if len(fixed) < len(parsed) and config.density is None:
        raise InputError(
            f"{key}.density: {config.pattern} needs the share of weights that stays, such as 0.7"
        )
    if MIXED in parsed and config.allocation != "distortion":
        raise InputError(f"{key}.allocation: mixed patterns are allocated by distortion")


def _fixed(pattern: Pattern, config: SparsifyConfig) -> bool:
    """Whether the density follows from the pattern."""
    return bool(pattern.group or (pattern.blocks and config.rank))


def _given_densities(
    shapes: Mapping[str, tuple[int, int]], config: SparsifyConfig
) -> dict[str, float]:
    """By layer whose pattern does not fix it, its density, where no distortions have a say."""
    if config.density is None or config.allocation == "distortion":
        return {}
    if config.allocation == "uniform":
        return dict.fromkeys(shapes, config.density)
    return erdos_renyi_densities(shapes, config.density)


def _allowed(
    text: str, config: SparsifyConfig, shape: tuple[int, int], given: float | None
) -> list[tuple[Pattern, float]]:
    """The options of a layer of `shape`, outputs and inputs."""
    if text == MIXED:
        each = [parse_pattern(nm) for nm in NM]
        return [(p, p.density(1)) for p in each if p.density(1) >= config.floor] + [DENSE]
    pattern = parse_pattern(text)
    if pattern.group:
        return [(pattern, pattern.density(1))]
    if pattern.blocks and config.rank:
        return [(pattern, factors.density(shape, pattern.blocks, config.rank))]
    if given is not None:
        densities = [given]
    else:
        densities = [s / GRID for s in range(1, GRID + 1) if s / GRID >= config.floor]
    if pattern.blocks:
        return _factored(pattern, densities, shape)
    return [(pattern, density) for density in densities]


def _factored(
    pattern: Pattern, densities: Sequence[float], shape: tuple[int, int]
) -> list[tuple[Pattern, float]]:
    """Two products of the ranks that come next to `densities`, each with what they really keep."""
    blocks = pattern.blocks
    ranks = dict.fromkeys(factors.rank_for(shape, blocks, d) for d in densities if d < 1)
    kept = [factors.density(shape, blocks, rank) for rank in ranks]
    return [(pattern, d) for d in kept if d < 1] + ([DENSE] if 1 in densities or not kept else [])
