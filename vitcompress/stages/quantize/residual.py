"""Second 8-bit terms of rounded inputs: which layers get one, and of which tokens.

A second term takes nearly all of what rounding an input costs, for about as much work as the layer
itself. In late blocks most of the cost is that of the few tokens that the head reads, whose second
term is a small product, but splits the layer's output and joins it again. What each takes is either
counted or measured; the choice that takes away most under the budget is exact (a multiple-choice
knapsack).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from vitcompress.details import Fact
from vitcompress.measure.latencies import Extra, QuantizedShape
from vitcompress.methods.knapsack import Option, solve_knapsack
from vitcompress.model.architecture import VitModel
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import QuantizeConfig, TimeShare
from vitcompress.stages.quantize.layer import with_residual
from vitcompress.stages.quantize.prepare import QuantizeSetup
from vitcompress.tasks import Task

# Neighbours are told apart by less than classes are.
_SHARE, _SHARE_OF_EMBEDDINGS = 0.05, 0.2
# Multiply-accumulates that take as long as to move one value of an output: 58 to 75 in onnxruntime
# with AVX2, at widths of 192 and 768.
_MOVED = 64
_UNITS = 10**6  # of a whole, that budgets are spent in


Prices = Mapping[str, Extra]
"""What second terms take, by layer, as shares of what all layers take with one term each."""


@dataclass(frozen=True)
class SecondTerm:
    """`price`: as in `Prices`. `gain`: how much closer the outputs come, in the task's distance."""

    price: float
    gain: float


@dataclass(frozen=True)
class InputCosts:
    """By layer: what its rounded `weights` cost alone, and what its rounded `inputs` do besides."""

    weights: dict[str, float]
    inputs: dict[str, float]


def residual_share(config: QuantizeConfig, task: Task) -> float:
    """The share of what layers take that second terms may take besides."""
    if config.activations == "float":
        return 0.0
    if isinstance(config.residual, TimeShare):
        return config.residual.latency
    if config.residual is not None:
        return config.residual
    return _SHARE_OF_EMBEDDINGS if task.name == "embedding" else _SHARE


def second_terms(
    model: VitModel,
    config: QuantizeConfig,
    context: Context,
    known: QuantizeSetup,
    layers: Mapping[str, QuantizedLinear],
    costs: InputCosts,
) -> tuple[dict[str, QuantizedLinear], dict[str, SecondTerm]]:
    """Those of `layers` that get a second term, with it, and what each takes and brings.

    Where all tokens get one, the range of the layer's input in `known` is widened.
    """
    share = residual_share(config, known.task)
    if not share:
        return {}, {}
    prices = _prices(model, config, context, known)
    finer = _of_first_tokens(known, layers, costs, prices)
    names = [name for name, cost in costs.inputs.items() if cost > 0]
    left = {
        name: max(known.cost({name: layer}) - costs.weights[name], 0.0)
        for name, layer in finer.items()
    }
    chosen = solve_knapsack(
        [
            [
                Option(0, costs.inputs[name]),
                Option(ceil(_UNITS * prices[name].all), 0.0),
                *([Option(ceil(_UNITS * prices[name].first), left[name])] if name in left else []),
            ]
            for name in names
        ],
        int(share * _UNITS),
    )
    assert chosen is not None  # no second term at all takes nothing
    given, told = dict[str, QuantizedLinear](), dict[str, SecondTerm]()
    for name, option in zip(names, chosen, strict=True):
        extra, cost = prices[name], costs.inputs[name]
        if option == 1:
            known.ranges[name] = with_residual(known.ranges[name], known.found[name])
            given[name] = known.ranged(name, layers[name], terms=2)
            told[name] = SecondTerm(extra.all, cost)
        elif option == 2:
            given[name] = finer[name]
            told[name] = SecondTerm(extra.first, cost - left[name])
    return given, told


def facts(config: QuantizeConfig, told: Mapping[str, SecondTerm], word: str) -> dict[str, Fact]:
    """What second terms took and brought together."""
    if not told:
        return {}
    unit = "latency" if isinstance(config.residual, TimeShare) else "macs"
    return {
        f"second_terms_{unit}_share": sum(each.price for each in told.values()),
        f"second_terms_gained_{word}": sum(each.gain for each in told.values()),
    }


def _of_first_tokens(
    known: QuantizeSetup,
    layers: Mapping[str, QuantizedLinear],
    costs: InputCosts,
    prices: Prices,
) -> dict[str, QuantizedLinear]:
    """The layers whose inputs cost more than the mean, with second terms of the first tokens alone,
    where the head reads a few tokens and these are not all that the layer sees."""
    tokens, mean = known.anatomy.prefix_tokens, sum(costs.inputs.values()) / len(known.floats)
    return {
        name: known.ranged(name, layers[name], 2, tokens)
        for name, cost in costs.inputs.items()
        if tokens
        and cost > mean
        and prices[name].first < prices[name].all
        and known.anatomy.site_of(name) is not None
    }


def _prices(
    model: VitModel, config: QuantizeConfig, context: Context, known: QuantizeSetup
) -> Prices:
    shapes, first = _shapes(model, config, known), known.anatomy.prefix_tokens
    if isinstance(config.residual, TimeShare):
        with context.latencies() as table:
            taken = table.second_terms(dict.fromkeys(shapes.values()), first)
    else:
        taken = {shape: _counted(shape, first) for shape in shapes.values()}
    whole = sum(taken[shape][0] for shape in shapes.values())
    return {
        name: Extra(*(each / whole for each in taken[shape][1])) for name, shape in shapes.items()
    }


def _counted(shape: QuantizedShape, first: int) -> tuple[float, Extra]:
    """In multiply-accumulates, what second terms of the first tokens move among them."""
    rows = torch.Size(shape.size[:-1]).numel()
    each = float(shape.size[-1] * shape.outputs)
    some = first * each + rows * shape.outputs * _MOVED
    return rows * each, Extra(min(some, rows * each), rows * each)


def _shapes(
    model: VitModel, config: QuantizeConfig, known: QuantizeSetup
) -> dict[str, QuantizedShape]:
    """Of all layers, as one image goes through them."""
    found = dict[str, QuantizedShape]()

    def hook(name: str) -> Any:
        def seen(layer: nn.Linear, inputs: tuple[Tensor]) -> None:
            size = tuple(inputs[0].shape[1:])
            found[name] = QuantizedShape(size, layer.out_features, config.activations)

        return seen

    handles = [layer.register_forward_pre_hook(hook(n)) for n, layer in known.floats.items()]
    try:
        device = next(iter(known.floats.values())).weight.device
        size = model.preprocess.channels, *model.preprocess.input_size
        known.anatomy.module(torch.zeros(1, *size, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name] for name in known.floats}
