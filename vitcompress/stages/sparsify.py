"""Sparsify: zeros in patterns, where they cost least, and the other weights refitted around them.

Inputs are weighed by the importance of their token (Fisher information): what counts is the error
where the model's output listens.
"""

import copy
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vitcompress.console import track
from vitcompress.errors import InputError
from vitcompress.methods import sparsity
from vitcompress.methods.sparsity import Pattern
from vitcompress.model.architecture import VitModel, stored_tensors
from vitcompress.model.layers import QuantizedLinear
from vitcompress.stages.calibrate import statistics
from vitcompress.stages.context import Context
from vitcompress.stages.sparsify_config import SparsifyConfig as SparsifyConfig
from vitcompress.stages.sparsify_config import choices
from vitcompress.stages.sparsify_layer import Moments, chosen, distortion, sparse


def sparsify(
    model: VitModel, config: SparsifyConfig, context: Context
) -> tuple[VitModel, dict[str, Any]]:
    """Return the model with zeros, and what was chosen for each layer.

    Raises `InputError` for patterns that match no layer or do not fit it, and budgets out of reach.
    """
    allowed = choices(model, config)
    if any(isinstance(m, QuantizedLinear) for m in model.module.modules()):
        raise InputError(
            f"stages.{config.name}: comes after quantize; put zeros in first, and quantize what "
            "is left"
        )
    found = statistics(model.module, model.fingerprint(), list(allowed), context, gradients=True)
    floats = {n: cast(nn.Linear, model.module.get_submodule(n)) for n in allowed}
    moments = {n: Moments.of(found.pop(n), floats[n].bias is not None) for n in allowed}
    asked = {name: each[0] for name, each in allowed.items()}
    module = copy.deepcopy(model.module)
    rows = []
    for name, linear in track(floats.items(), "placing zeros", len(floats)):
        pattern, density = asked[name]
        mask = chosen(
            linear.weight, moments[name], pattern, density, config.criterion, context.seed
        )
        twin = sparse(linear, moments[name], mask, pattern, config.reconstruct)
        module.set_submodule(name, twin)
        rows.append(
            {
                "layer": name,
                "pattern": describe_pattern(pattern, density),
                "density": float((twin.weight != 0).double().mean()),
                "output_error": distortion(linear, twin, moments[name])[1],
            }
        )
    return described(model, module, asked, config), {
        "density": average(asked, floats),
        "criterion": config.criterion,
        "reconstructed": config.reconstruct,
        "layers": rows,
    }


def plan(model: VitModel, config: SparsifyConfig) -> tuple[VitModel, dict[str, Any]]:
    """A model with as many zeros, not where they will be; budgets are spread evenly."""
    allowed = choices(model, config)
    module = copy.deepcopy(model.module)
    floats = {n: cast(nn.Linear, module.get_submodule(n)) for n in allowed}
    asked = {
        n: each[0] if len(each) == 1 else (each[0][0], config.density)
        for n, each in allowed.items()
    }
    for name, (pattern, density) in asked.items():
        values = sparsity.cells(floats[name].weight.double().square(), pattern.cell)
        mask = sparsity.spread(sparsity.keep(values, pattern, density), pattern.cell)
        floats[name].weight.mul_(mask)
    return described(model, module, asked, config), {
        "density": average(asked, floats),
        "layers": list(asked),
    }


def average(asked: dict[str, tuple[Pattern, float]], floats: dict[str, nn.Linear]) -> float:
    """The share of the layers' weights that stays."""
    weights = {name: floats[name].weight.numel() for name in asked}
    return sum(weights[n] * d for n, (_, d) in asked.items()) / sum(weights.values())


def describe_pattern(pattern: Pattern, density: float) -> str:
    if density == 1:
        return "dense"
    if pattern.group:
        return f"{pattern.kept}:{pattern.group}"
    return "unstructured" if pattern.cell == (1, 1) else f"{pattern.cell[0]}x{pattern.cell[1]}"


def described(
    model: VitModel,
    module: nn.Module,
    asked: dict[str, tuple[Pattern, float]],
    config: SparsifyConfig,
) -> VitModel:
    """`module` with the description of how its layers are stored."""
    cells = {n: p.cell for n, (p, density) in asked.items() if density < 1}
    if config.storage == "dense":
        cells = {}
    sparse = {**model.architecture.sparse, **cells}
    architecture = model.architecture.model_copy(update={"sparse": sparse})
    return replace(model, module=module, architecture=architecture)
