"""Sparsify: zeros in patterns, where they cost least, and the other weights refitted around them;
or two small products in the place of one.

Inputs are weighed by the importance of their token (Fisher information): what counts is the error
where the model's output listens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from torch import nn

from vitcompress.console import track
from vitcompress.details import Fact, Row, Table
from vitcompress.memory import copied
from vitcompress.methods import sparsity
from vitcompress.methods.patterns import Pattern
from vitcompress.model.architecture import VitModel
from vitcompress.model.modules.factored import FactoredLinear
from vitcompress.stages.context import Context
from vitcompress.stages.effort import Work, solving
from vitcompress.stages.probe import PROBED
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.layer import Sparsity, compressed, distortion, layer_of
from vitcompress.stages.sparsify.prepare import SparsifySetup, prepare_sparsify
from vitcompress.stages.sparsify.selection import allowed_sparsities
from vitcompress.stages.sparsify.share import SparsityCosts, cheapest, costs, knee
from vitcompress.stages.stage import Stage, StageResult


@dataclass(frozen=True)
class Spread:
    """The option of each layer under a budget, and what is told of it."""

    asked: dict[str, Sparsity]
    facts: Mapping[str, Fact] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    warnings: tuple[str, ...] = ()


def sparsify(model: VitModel, config: SparsifyConfig, context: Context) -> StageResult:
    """The model with zeros, and what was chosen for each layer.

    Raises `InputError` for patterns that match no layer or do not fit it, and budgets out of reach.
    """
    known = prepare_sparsify(model, config, context)
    if all(len(each) == 1 for each in known.allowed.values()):
        spread = Spread({name: each[0] for name, each in known.allowed.items()})
    else:
        found = costs(known, config, context)
        spread = _spread(known, found, config, context)
    asked = spread.asked
    rows: list[Row] = []
    for name, linear in track(known.floats.items(), "placing zeros", len(known.floats)):
        moments, option = known.moments[name], asked[name]
        twin = compressed(linear, moments, option, config, context.seed)
        known.module.set_submodule(name, twin)
        rows.append(
            {
                "layer": name,
                "pattern": words(option),
                **_size(twin, option),
                "output_error": distortion(linear, twin, moments)[1],
            }
        )
    criterion: dict[str, Fact] = {"criterion": config.criterion}
    facts = {
        "density": _average(asked, known.weights),
        **({} if all(_is_factored(each) for each in asked.values()) else criterion),
        "reconstructed": config.reconstruct,
        **spread.facts,
    }
    charted = {
        "density": "Weights of each layer that are not zero, or those of its two products, as a "
        "share of all",
        "output_error": "Squared error of each layer's output, as a share of its power",
    }
    layers = Table.of("layers", rows, charted)
    return StageResult(
        _described(model, known.module, asked, config),
        facts,
        (layers, *spread.tables),
        warnings=spread.warnings,
    )


def _spread(
    known: SparsifySetup, found: SparsityCosts, config: SparsifyConfig, context: Context
) -> Spread:
    """The option of each layer under the budget, and where the knee of the whole curve lies."""
    assert config.density is not None
    key = f"stages.{config.name}.density"
    asked, tried = cheapest(found, known.weights, config.density, config.floor, key)
    bend = knee(found.nats, known.weights)
    warnings: tuple[str, ...] = ()
    if config.density < bend:
        warning = (
            f"{key}: {config.density:g} lies beyond the knee of this model, at {bend:.2f}; below "
            "it the cost of zeros rises steeply"
        )
        context.say(warning)
        warnings = (warning,)
    facts = {"knee_density": bend, "beyond_knee": config.density < bend}
    return Spread(asked, facts, (tried,), warnings)


def sensitivity(model: VitModel, config: SparsifyConfig, context: Context) -> Table:
    """What zeros in each layer alone cost, measured for one option and drawn from it for others."""
    known = prepare_sparsify(model, config, context)
    found = costs(known, config, context)
    asked = {name: each[0] for name, each in known.allowed.items()}
    if config.density is not None:
        asked = _spread(known, found, config, context).asked
    rows: list[Row] = [
        {
            "layer": name,
            "weights": known.weights[name],
            "measured": f"{words(found.measured[name][0])} {found.measured[name][0][1]:.3g}",
            f"measured_{found.word}": found.measured[name][1],
            "pattern": words(asked[name]),
            "density": asked[name][1],
            found.word: found.nats[name][asked[name]],
        }
        for name in known.floats
    ]
    charted = {
        "density": "Weights that would be kept, as a share of all",
        found.word: f"{model.task.distance_words} that the zeros of this layer alone would cost",
    }
    return Table.of("sensitivities", rows, charted)


def plan(model: VitModel, config: SparsifyConfig) -> StageResult:
    """A model with as many zeros, not where they will be; budgets are spread evenly."""
    allowed, wanted = allowed_sparsities(model, config), config.density or 1.0
    asked = {n: min(each, key=lambda o: abs(o[1] - wanted)) for n, each in allowed.items()}
    module, weights = copied(model.module), dict[str, int]()
    for name, (pattern, density) in asked.items():
        linear = cast(nn.Linear, module.get_submodule(name))
        weight = linear.weight
        weights[name] = weight.numel()
        if pattern.blocks:
            module.set_submodule(name, layer_of(linear, asked[name]).empty(linear))
            continue
        kept = sparsity.keep(sparsity.cells(weight.abs(), pattern.cell), pattern, density)
        weight.mul_(sparsity.weight_mask(kept, pattern.cell, weight.shape))
    rows: list[Row] = [{"layer": name, "pattern": words(option)} for name, option in asked.items()]
    return StageResult(
        _described(model, module, asked, config),
        {"density": _average(asked, weights)},
        (Table.of("layers", rows),),
    )


def words(option: Sparsity) -> str:
    """An option's pattern as a recipe writes it."""
    pattern, density = option
    if density == 1:
        return "dense"
    if pattern.blocks:
        return "low_rank" if pattern.blocks == 1 else f"monarch:{pattern.blocks}"
    if pattern.group:
        return f"{pattern.kept}:{pattern.group}"
    return "unstructured" if pattern == Pattern() else "x".join(map(str, pattern.cell))


def _is_factored(option: Sparsity) -> bool:
    return option[0].blocks > 0


def _size(twin: nn.Linear | FactoredLinear, option: Sparsity) -> Row:
    """How much is left of a layer."""
    if isinstance(twin, nn.Linear):
        return {"density": float((twin.weight != 0).double().mean())}
    return {"density": option[1], "rank": twin.factors.second.shape[2] // option[0].blocks}


def _average(asked: Mapping[str, Sparsity], weights: Mapping[str, int]) -> float:
    return sum(weights[n] * d for n, (_, d) in asked.items()) / sum(weights[n] for n in asked)


def _described(
    model: VitModel, module: nn.Module, asked: Mapping[str, Sparsity], config: SparsifyConfig
) -> VitModel:
    """`module` with the description of what its layers are, and how they are stored."""
    sparse, factored = dict(model.architecture.sparse), dict(model.architecture.factored)
    for name, option in asked.items():
        if _is_factored(option):
            linear = cast(nn.Linear, model.module.get_submodule(name))
            factored[name] = layer_of(linear, option)
        elif option[1] < 1 and config.storage == "compact":
            sparse[name] = words(option)
    update = {"sparse": sparse, "factored": factored}
    return replace(model, module=module, architecture=model.architecture.model_copy(update=update))


def work(model: VitModel, config: SparsifyConfig, images: int) -> Work:
    """Measured on the embedded model: calibration with importances; under a budget each layer tried
    once, in half of the model on average; the closed forms."""
    names = allowed_sparsities(model, config)
    tried = 0 if config.density is None else len(names) * min(images, PROBED)
    layers = (cast(nn.Linear, model.module.get_submodule(name)) for name in names)
    return Work(6.0 * images + tried, solving(layers))


STAGE = Stage(sparsify, plan, sensitivity, work)
