"""Quantize: Linear layers in 8-bit integers, chosen so that their outputs change least.

For each layer the stage tries foldings of the input channels into the tensors before and after,
and ranges of the activations; each is judged by the error of the layer's output on sampled rows,
weights and activations rounded. The winner's weights are rounded with error feedback, and the mean
error that is left goes into the bias.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vitcompress.console import track
from vitcompress.methods import folding, quantizer
from vitcompress.methods.folding import Fold
from vitcompress.methods.histogram import quantiles
from vitcompress.methods.rounding import gptq
from vitcompress.model.architecture import QuantizedLayer, VitModel
from vitcompress.model.layers import Activations, QuantizedLinear
from vitcompress.model.structure import block_of, input_fold, linears, match
from vitcompress.stages.calibrate import LayerStatistics, statistics
from vitcompress.stages.context import Context

# Shares of the values that a static range holds; the rest is clipped at either end.
_SHARES = (1.0, *(1 - 10.0**-digits for digits in (6, 5.5, 5, 4.75, 4.5, 4.25, 4, 3.5, 3)))
_JUDGED_ROWS = 512  # enough to tell candidates apart
_PROBED_BATCHES = 2  # of 16 images, to measure layers one by one


class QuantizeConfig(BaseModel):
    """Quantize the weights and the inputs of Linear layers.

    `layers`: patterns over layer names; `skip`: patterns taken out again. `activations`: `static`
    fixes each range from calibration images; `dynamic` takes it at run time from each batch.
    `rounding`: `gptq` feeds each rounding error to the weights not yet rounded. `fold`: move
    channel ranges into the neighbouring tensors where that lowers the error. `fine`: the share of
    the layers' multiply-accumulates that may be spent once more, on a second 8-bit term of the
    inputs, where that is worth most; beyond it, in costly layers the class token alone has a second
    term where that takes away most of their cost. `rest`: the type in which matrices that stay
    float (patch and position embeddings, …) are stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["quantize"] = "quantize"
    name: str = "quantize"
    bits: Literal[8] = 8
    activations: Activations = "static"
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("blocks.*",)
    skip: tuple[str, ...] = ()
    rounding: Literal["gptq", "nearest"] = "gptq"
    fold: bool = True
    fine: Annotated[float, Field(ge=0, le=1)] = 0.05
    rest: Literal["float16", "float32"] = "float32"


@dataclass(frozen=True)
class _Choice:
    """One way to quantize a layer: its fold, its activation range and what it costs."""

    fold: Fold
    low: Tensor
    high: Tensor
    share: float
    error: float


def quantize(
    model: VitModel, config: QuantizeConfig, context: Context
) -> tuple[VitModel, dict[str, Any]]:
    """Return the model with quantized layers, and what was chosen for each.

    Raises `InputError` for a pattern that matches no layer.
    """
    names = selected(model, config)
    found = statistics(model.module, model.fingerprint(), names, context)
    module = copy.deepcopy(model.module)
    # Foldings first: that of one layer may change the weights of another.
    choices = {
        name: _choose(module, name, found[name], config)
        for name in track(names, "choosing ranges", len(names))
    }
    floats = {name: cast(nn.Linear, module.get_submodule(name)) for name in names}
    cost = _probe(module, context)
    layers, costs = {}, {}
    for name in track(names, "rounding weights", len(names)):
        layers[name], choices[name], costs[name] = _cheapest(
            name, floats[name], choices[name], found[name], config, cost
        )
    for name in _finest(costs, found, floats, config.fine):
        choices[name] = _roomy_range(choices[name], found[name])
        layers[name] = _ranged(layers[name], floats[name], choices[name], found[name], terms=2)
    # A second term of the few tokens that the head reads costs next to nothing.
    tokens = getattr(model.module, "num_prefix_tokens", 0) if config.fine else 0
    for name in _costly(costs, layers, module) if tokens else ():
        finer = _ranged(layers[name], floats[name], choices[name], found[name], 2, tokens)
        if cost(name, finer) < costs[name] / 2:
            layers[name] = finer
    for name, layer in layers.items():
        module.set_submodule(name, layer)
    return _described(model, module, layers, config), {
        "bits": config.bits,
        "activations": config.activations,
        "rounding": config.rounding,
        "quantized_layers": len(names),
        "folded_layers": sum(choice.fold.strength > 0 for choice in choices.values()),
        "two_term_layers": sum(layer.terms == 2 for layer in layers.values()),
        "of_first_tokens_only": sum(layer.fine_tokens is not None for layer in layers.values()),
        "layers": [
            {
                "layer": name,
                "fold": choices[name].fold.strength,
                "clipped_share": 1 - choices[name].share,
                "terms": layers[name].terms,
                "fine_tokens": layers[name].fine_tokens,
                "one_term_kl": costs[name],
                "output_error": _layer_error(
                    layers[name], floats[name], choices[name].fold.apply(found[name].rows)
                ),
            }
            for name in names
        ],
    }


def plan(model: VitModel, config: QuantizeConfig) -> tuple[VitModel, dict[str, Any]]:
    """A model with empty quantized layers, one term each, and the names of these layers."""
    names = selected(model, config)
    module = copy.deepcopy(model.module)
    layers = {}
    for name in names:
        linear = cast(nn.Linear, module.get_submodule(name))
        layers[name] = QuantizedLinear(
            linear.in_features, linear.out_features, config.bits, config.activations
        )
        module.set_submodule(name, layers[name])
    return _described(model, module, layers, config), {
        "bits": config.bits,
        "activations": config.activations,
        "quantized_layers": len(names),
        "layers": names,
    }


def sensitivity(model: VitModel, config: QuantizeConfig, context: Context) -> list[dict[str, Any]]:
    """What quantizing each layer costs: the KL of the model with this one layer quantized."""
    rows: list[dict[str, Any]] = quantize(model, config, context)[1]["layers"]
    return rows


def selected(model: VitModel, config: QuantizeConfig) -> list[str]:
    """The names of the layers that `config` selects, in the order of the model."""
    names = list(linears(model.module))
    key = f"stages.{config.name}"
    skipped = set(match(config.skip, names, f"{key}.skip"))
    return [n for n in match(config.layers, names, f"{key}.layers") if n not in skipped]


def _described(
    model: VitModel,
    module: nn.Module,
    layers: dict[str, QuantizedLinear],
    config: QuantizeConfig,
) -> VitModel:
    """`module` with the description that belongs to it."""
    described = {
        name: QuantizedLayer(
            bits=q.bits, activations=q.activations, terms=q.terms, fine_tokens=q.fine_tokens
        )
        for name, q in layers.items()
    }
    half: tuple[str, ...] = ()
    if config.rest == "float16":
        matrices = {n: p for n, p in module.named_parameters() if p.ndim > 1}
        for parameter in matrices.values():
            parameter.copy_(parameter.half())
        half = tuple(matrices)
    quantized = {**model.architecture.quantized, **described}
    architecture = model.architecture.model_copy(update={"quantized": quantized, "half": half})
    return replace(model, module=module, architecture=architecture)


def _choose(
    module: nn.Module, name: str, found: LayerStatistics, config: QuantizeConfig
) -> _Choice:
    """The fold and the range of the least output error; the fold is applied to `module`."""
    weight = cast(nn.Linear, module.get_submodule(name)).weight
    plain = _best_range(folding.identity(weight.shape[1]), weight, found, config)
    apply = input_fold(module, name) if config.fold else None
    if apply is None:
        return plain
    folds = folding.candidates(found.low, found.high)
    folded = (_best_range(fold, weight, found, config) for fold in folds)
    best = min((plain, *folded), key=lambda choice: choice.error)
    if best is not plain:
        apply(best.fold.shift, best.fold.scale)
    return best


def _best_range(
    fold: Fold, weight: Tensor, found: LayerStatistics, config: QuantizeConfig
) -> _Choice:
    """The activation range with the least output error under `fold`, weights rounded to nearest."""
    rows = fold.apply(found.rows[:_JUDGED_ROWS])
    weight = weight * fold.scale
    target = rows @ weight.T
    scale = quantizer.weight_scale(weight, config.bits, _gram(fold, found).diagonal().float())
    codes = quantizer.round_weight(weight, scale, config.bits)

    def choice(low: Tensor, high: Tensor, share: float) -> _Choice:
        x_scale, zero_point = quantizer.activation_parameters(low, high)
        x = quantizer.quantize_activation(rows, x_scale, zero_point) * x_scale
        error = _error(x @ (codes * scale[:, None]).T, target)
        return _Choice(fold, low, high, share, error)

    ranges = _ranges(fold, found)
    if config.activations == "dynamic":
        ranges = ranges[:1]
    return min((choice(*r) for r in ranges), key=lambda c: c.error)


def _ranges(fold: Fold, found: LayerStatistics) -> list[tuple[Tensor, Tensor, float]]:
    """Ranges of the folded input that hold the shares `_SHARES` of all values, widest first."""
    low, high = (found.low - fold.shift) / fold.scale, (found.high - fold.shift) / fold.scale
    centres = (found.histogram.centres() - fold.shift[:, None]) / fold.scale[:, None]
    shares = torch.tensor(_SHARES[1:])
    ends = quantiles(
        centres.flatten(), found.counts.flatten(), torch.cat([(1 - shares) / 2, (1 + shares) / 2])
    ).clamp(low.amin(), high.amax())
    lows, highs = ends.chunk(2)
    return [(low.amin(), high.amax(), 1.0), *zip(lows, highs, _SHARES[1:], strict=True)]


def _error(output: Tensor, target: Tensor) -> float:
    """The mean squared error of `output` relative to the variance of `target`, both [rows, out]."""
    variance = (target - target.mean(0)).square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return float((output - target).square().mean() / variance)


def _gram(fold: Fold, found: LayerStatistics) -> Tensor:
    """The mean of x xᵀ of the folded input, float64 [in, in]."""
    mean, shift = found.total / found.weight, fold.shift.double()
    moved = found.gram / found.weight - torch.outer(shift, mean) - torch.outer(mean, shift)
    return (moved + torch.outer(shift, shift)) / torch.outer(fold.scale, fold.scale)


def _probe(module: nn.Module, context: Context) -> Callable[[str, QuantizedLinear], float]:
    """A function of (name, layer): KL(float ‖ `module` with this one layer quantized), in nats.

    Measured on a few calibration images.
    """
    batches = islice(context.calibration_batches("reading images"), _PROBED_BATCHES)
    pixels = torch.cat(list(batches)).to(context.device)
    dense = module(pixels).log_softmax(-1)

    def cost(name: str, layer: QuantizedLinear) -> float:
        before = module.get_submodule(name)
        module.set_submodule(name, layer.to(context.device))
        now = module(pixels).log_softmax(-1)
        module.set_submodule(name, before)
        layer.cpu()
        return float(F.kl_div(now, dense, reduction="batchmean", log_target=True))

    return cost


def _cheapest(
    name: str,
    layer: nn.Linear,
    choice: _Choice,
    found: LayerStatistics,
    config: QuantizeConfig,
    cost: Callable[[str, QuantizedLinear], float],
) -> tuple[QuantizedLinear, _Choice, float]:
    """The layer rounded, with the range that costs the model least KL near the chosen one.

    A few tokens with huge activations may carry little of a layer's error and most of the model's:
    what to clip has the last word from the model's output. From the choice the search steps to
    wider ranges while that helps, else to narrower ones.
    """
    rounded = _rounded(layer, choice, found, config)
    best = (rounded, choice, cost(name, rounded))
    if config.activations == "dynamic":
        return best
    ladder = [replace(choice, low=a, high=b, share=s) for a, b, s in _ranges(choice.fold, found)]
    start = _SHARES.index(choice.share)
    for direction in (range(start - 1, -1, -1), range(start + 1, len(ladder))):
        for rung in direction:
            ranged = _ranged(rounded, layer, ladder[rung], found)
            price = cost(name, ranged)
            if price >= best[2]:
                break
            best = (ranged, ladder[rung], price)
        if best[1] is not choice:
            break
    return best


def _rounded(
    layer: nn.Linear, choice: _Choice, found: LayerStatistics, config: QuantizeConfig
) -> QuantizedLinear:
    """The quantized twin of `layer`, whose weights are already folded."""
    bits, gram = config.bits, _gram(choice.fold, found)
    scale = quantizer.weight_scale(layer.weight, bits, gram.diagonal().float())
    if config.rounding == "gptq":
        # Few rows say little of their covariance: shrink it by how many there are for each input.
        damping = 0.01 + len(gram) / float(found.weight)
        codes = gptq(layer.weight, scale, gram, bits, damping)
    else:
        codes = quantizer.round_weight(layer.weight, scale, bits)
    quantized = QuantizedLinear(layer.in_features, layer.out_features, bits, config.activations)
    quantized.codes = quantizer.pack_weight(codes, bits)
    quantized.scale = scale
    return _ranged(quantized, layer, choice, found)


def _ranged(
    quantized: QuantizedLinear,
    layer: nn.Linear,
    choice: _Choice,
    found: LayerStatistics,
    terms: Literal[1, 2] = 1,
    fine_tokens: int | None = None,
) -> QuantizedLinear:
    """`quantized` with the range of `choice`, and the bias that makes its mean error zero."""
    ranged = copy.deepcopy(quantized)
    ranged.terms, ranged.fine_tokens = terms, fine_tokens
    if ranged.activations == "static":
        x_scale, zero_point = quantizer.activation_parameters(choice.low, choice.high)
        ranged.activation_scale = x_scale
        ranged.activation_zero_point = zero_point.to(torch.uint8)
    rows = choice.fold.apply(found.rows)
    ranged.bias = torch.zeros_like(ranged.bias)
    # Plainly over the sample: its first tokens, which the head reads, count for more than one each.
    ranged.bias = (layer(rows) - ranged(rows)).mean(0)
    return ranged


def _layer_error(quantized: QuantizedLinear, layer: nn.Linear, rows: Tensor) -> float:
    return _error(quantized(rows), layer(rows))


def _finest(
    costs: dict[str, float],
    found: dict[str, LayerStatistics],
    floats: dict[str, nn.Linear],
    share: float,
) -> list[str]:
    """The layers that cost most KL per multiply-accumulate, up to `share` of all of these."""
    work = {n: float(found[n].weight) * floats[n].weight.numel() for n in costs}
    left = share * sum(work.values())
    chosen = []
    for name in sorted(costs, key=lambda n: costs[n] / work[n], reverse=True):
        if work[name] <= left:
            left -= work[name]
            chosen.append(name)
    return chosen


def _costly(
    costs: dict[str, float], layers: dict[str, QuantizedLinear], module: nn.Module
) -> list[str]:
    """The layers of one term, inside blocks, that cost more KL than the average layer."""
    average = sum(costs.values()) / len(costs)
    return [
        name
        for name, cost in costs.items()
        if cost > average and layers[name].terms == 1 and block_of(module, name) is not None
    ]


def _roomy_range(choice: _Choice, found: LayerStatistics) -> _Choice:
    """Half as much again as was ever seen: with two terms there are steps to spare."""
    low, high, share = _ranges(choice.fold, found)[0]
    return replace(choice, low=1.5 * low, high=1.5 * high, share=share)
