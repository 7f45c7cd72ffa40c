"""How much of each layer stays: what zeros cost in each, and the cheapest choice for a budget.

The cost of a layer is the squared error of its output, outputs and tokens weighed by their
importance, as a function of what stays; one measured divergence of the whole model brings the
curves of all layers to one unit, nats. Such costs add up while errors are small. Where many layers
lose much, the sum says too little, and less the more unevenly they lose; so choices that let
layers differ less are tried as well, and measured as a whole.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from vitcompress.console import track
from vitcompress.details import Table
from vitcompress.errors import InputError
from vitcompress.methods import knapsack
from vitcompress.model.families import anatomy_of
from vitcompress.model.modules.factored import FactoredLinear
from vitcompress.stages.context import Context
from vitcompress.stages.probe import probe_of
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.layer import Sparsity, compressed, distortion
from vitcompress.stages.sparsify.prepare import SparsifySetup
from vitcompress.stages.sparsify.selection import GRID

_KNOTS = (0.125, 0.375, 0.625, 0.875)  # densities that are measured; others lie between
_EVENNESS = (0.0, 0.4, 0.7, 0.9)  # floors that are tried, from the one asked for to the density


@dataclass(frozen=True)
class SparsityCosts:
    """`nats`: of each option of each layer. `measured`: what was probed, option and divergence.
    `joint`: the measured divergence of options for all layers together. `word`: what the task calls
    its distance."""

    nats: dict[str, dict[Sparsity, float]]
    measured: dict[str, tuple[Sparsity, float]]
    joint: Callable[[Mapping[str, Sparsity]], float]
    word: str


def costs(known: SparsifySetup, config: SparsifyConfig, context: Context) -> SparsityCosts:
    """What each option would cost, in the unit of the task's distance: for classes, nats."""
    probe = probe_of(anatomy_of(known.module), known.task, context)

    def quick(name: str, option: Sparsity) -> nn.Linear | FactoredLinear:
        layer = known.floats[name], known.moments[name]
        return compressed(*layer, option, config, context.seed, quick=True)

    def joint(asked: Mapping[str, Sparsity]) -> float:
        return probe.cost({name: quick(name, option) for name, option in asked.items()})

    found, measured = {}, {}
    for name, linear in track(known.floats.items(), "measuring layers", len(known.floats)):
        errors: dict[Sparsity, float] = {}
        twins = {}
        for option in _measured(known.allowed[name]):
            twin = quick(name, option)
            errors[option], twins[option] = distortion(linear, twin, known.moments[name])[0], twin
        probed = min(twins, key=lambda o: abs(o[1] - (config.density or 0)))
        nats = probe.cost({name: twins[probed]})
        measured[name] = (probed, nats)
        unit = nats / max(errors[probed], 1e-30)
        found[name] = {option: unit * _between(errors, option) for option in known.allowed[name]}
    return SparsityCosts(found, measured, joint, known.task.word)


def _measured(options: list[Sparsity]) -> list[Sparsity]:
    """The options of a layer that stand for all: all n:m patterns, some densities of others."""
    if any(pattern.group for pattern, _ in options):
        return [option for option in options if option[1] < 1]
    near = {min((abs(o[1] - knot), o[1], o[0]) for o in options)[1:] for knot in _KNOTS}
    return [(pattern, density) for density, pattern in sorted(near) if density < 1]


def _between(known: Mapping[Sparsity, float], option: Sparsity) -> float:
    """The distortion of `option`: a power of the share removed, between those that are known."""
    density = option[1]
    if density == 1 or option in known:
        return known.get(option, 0.0)
    points = sorted((math.log(1 - d), math.log(max(e, 1e-30))) for (_, d), e in known.items())
    x = math.log(1 - density)
    place = min(max(sum(p[0] < x for p in points), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[place - 1], points[place]
    return math.exp(y0 + (x - x0) * (y1 - y0) / (x1 - x0))


def allocated_densities(
    nats: Mapping[str, Mapping[Sparsity, float]],
    weights: Mapping[str, int],
    density: float,
    key: str,
) -> dict[str, Sparsity]:
    """The option of each layer: the least total cost that keeps a share `density` of all weights.

    Exact. Raises `InputError` where the sparsest options keep more.
    """
    items = [
        [knapsack.Option(round(weights[n] * o[1]), cost) for o, cost in each.items()]
        for n, each in nats.items()
    ]
    total = sum(weights.values())
    picked = knapsack.solve_knapsack(items, math.floor(density * total + 1e-6))
    if picked is None:
        least = sum(min(o.weight for o in each) for each in items) / total
        raise InputError(
            f"{key}: the sparsest patterns keep {least:.3f} of the weights; raise it, or "
            "lower floor"
        )
    return {n: list(nats[n])[i] for n, i in zip(nats, picked, strict=True)}


def cheapest(
    costs: SparsityCosts, weights: Mapping[str, int], density: float, floor: float, key: str
) -> tuple[dict[str, Sparsity], Table]:
    """The allocation that costs least as measured, and what each that was tried costs.

    The allocations differ in the floor under every layer's density, from `floor` up to nearly
    `density`. Raises `InputError` as `allocated_densities` does.
    """
    tried, measured = list[dict[str, Sparsity]](), f"{costs.word}_measured"
    rows = []
    for share in _EVENNESS:
        low = floor + share * (density - floor)
        allowed = {
            name: {option: cost for option, cost in each.items() if option[1] >= low}
            for name, each in costs.nats.items()
        }
        least = sum(weights[n] * min(o[1] for o in each) for n, each in allowed.items())
        if share and least > density * sum(weights.values()):
            break
        asked = allocated_densities(allowed, weights, density, key)
        if asked not in tried:
            tried.append(asked)
            summed = sum(costs.nats[name][option] for name, option in asked.items())
            joint = costs.joint(asked)
            rows.append({"floor": low, f"{costs.word}_summed": summed, measured: joint})
    best = min(range(len(rows)), key=lambda i: rows[i][measured])
    return tried[best], Table.of("allocations", rows)


def knee(nats: Mapping[str, Mapping[Sparsity, float]], weights: Mapping[str, int]) -> float:
    """The density below which the cost of a model rises steeply.

    The point of the curve of least cost farthest below the line between its ends (Essential
    Sparsity's sharp drop, 2306.03805, found in the predicted cost instead of by trials).
    """
    least = sum(weights[n] * min(o[1] for o in each) for n, each in nats.items())
    low = least / sum(weights.values())
    shares = [low + (1 - low) * step / GRID for step in range(GRID + 1)]
    total = []
    for share in shares:
        picked = allocated_densities(nats, weights, share + 1e-9, "knee")
        total.append(sum(nats[n][o] for n, o in picked.items()))
    top = max(total[0], 1e-30)
    return max(shares, key=lambda s: (1 - s) / (1 - low) - total[shares.index(s)] / top)
