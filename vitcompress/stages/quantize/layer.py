"""One layer of the quantize stage: its fold, the range of its input, its rounded weights."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.methods import folding, quantizer
from vitcompress.methods.folding import Fold
from vitcompress.methods.histogram import quantiles
from vitcompress.methods.rounding import descend, gptq, output_error, refitted
from vitcompress.model.layers import QuantizedLinear
from vitcompress.model.structure import input_fold, placed
from vitcompress.stages.calibrate import LayerStatistics
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import Style

# Shares of the values that a static range holds; the rest is clipped at either end.
_SHARES = (1.0, *(1 - 10.0**-digits for digits in (6, 5.5, 5, 4.75, 4.5, 4.25, 4, 3.5, 3)))
_JUDGED_ROWS = 512  # enough to tell candidates apart
_PROBED = 32  # images, to measure layers one by one
_VARYING = 1e-5  # the least share of an input's mean square that is variance and not rounding
_REFITS, _SWEEPS = 3, 2  # of scales to the codes, and of the codes to these

Cost = Callable[[Mapping[str, nn.Module]], float]
"""Layers by name → KL(float ‖ model with these layers in their places), in nats."""


@dataclass(frozen=True)
class Choice:
    """One way to quantize a layer's input: its fold, its range, and the error of the output."""

    fold: Fold
    low: Tensor
    high: Tensor
    share: float
    error: float


def choose(
    module: nn.Module, name: str, found: LayerStatistics, style: Style, bits: int, fold: bool
) -> Choice:
    """The fold and the range of the least output error; the fold is applied to `module`."""
    weight = cast(nn.Linear, module.get_submodule(name)).weight
    plain = _best_range(folding.identity(weight.shape[1]), weight, found, style, bits)
    apply = input_fold(module, name) if fold else None
    if apply is None:
        return plain
    folds = folding.candidates(found.low, found.high)
    folded = (_best_range(each, weight, found, style, bits) for each in folds)
    best = min((plain, *folded), key=lambda choice: choice.error)
    if best is not plain:
        apply(best.fold.shift, best.fold.scale)
    return best


def _best_range(
    fold: Fold, weight: Tensor, found: LayerStatistics, style: Style, bits: int
) -> Choice:
    """The activation range with the least output error under `fold`, weights rounded to nearest."""
    rows, weight, target = trial(fold, weight, found, style, bits)

    def choice(low: Tensor, high: Tensor, share: float) -> Choice:
        x_scale, zero_point = quantizer.activation_parameters(low, high)
        x = quantizer.quantize_activation(rows, x_scale, zero_point) * x_scale
        return Choice(fold, low, high, share, _error(x @ weight.T, target))

    ranges = _ranges(fold, found)
    if style.activations == "dynamic":
        ranges = ranges[:1]
    return min((choice(*r) for r in ranges), key=lambda c: c.error)


def trial(
    fold: Fold, weight: Tensor, found: LayerStatistics, style: Style, bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of the input under `fold`, weights rounded to nearest, and the float outputs."""
    rows = fold.apply(found.rows[:_JUDGED_ROWS])
    weight = weight * fold.scale
    step = weight_step(weight, gram(fold, found), style, bits)[2]
    return rows, quantizer.round_weight(weight, step, bits) * step, rows @ weight.T


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


def gram(fold: Fold, found: LayerStatistics) -> Tensor:
    """The mean of x xᵀ of the folded input, float64 [in, in]."""
    mean, shift = found.total / found.weight, fold.shift.double()
    moved = found.gram / found.weight - torch.outer(shift, mean) - torch.outer(mean, shift)
    return (moved + torch.outer(shift, shift)) / torch.outer(fold.scale, fold.scale)


def covariance(fold: Fold, found: LayerStatistics) -> Tensor:
    """The covariance of the folded input, float64 [in, in]."""
    mean = found.total / found.weight
    return (found.gram / found.weight - torch.outer(mean, mean)) / torch.outer(
        fold.scale, fold.scale
    )


def metric(fold: Fold, found: LayerStatistics, bits: int) -> Tensor:
    """What errors of weights are measured by, float64 [in, in]: the covariance of the input, since
    the mean error goes into the bias; for 8 bits, whose rounding loses little, the mean of x xᵀ;
    so also for an input that never changes, whose covariance is rounding errors."""
    whole, spread = gram(fold, found), covariance(fold, found)
    return spread if bits < 8 and spread.trace() > _VARYING * whole.trace() else whole


def weight_step(
    weight: Tensor, moments: Tensor, style: Style, bits: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Scale, multipliers and step of `weight`; `moments`: the Gram matrix of its inputs."""
    group = style.grouped(bits)
    scale, multipliers = quantizer.weight_scale(weight, bits, moments.diagonal().float(), group)
    scale = storable(scale, bits)
    return scale, multipliers, quantizer.weight_step(scale, multipliers, group, weight.shape[1])


def storable(scale: Tensor, bits: int) -> Tensor:
    """`scale` as it is stored: below 8 bits in float16, since it takes room beside few bits."""
    return scale.half().float() if bits < 8 and quantizer.fits_half(scale) else scale


def rounded(
    layer: nn.Linear, choice: Choice, found: LayerStatistics, style: Style, bits: int
) -> QuantizedLinear:
    """The quantized twin of `layer`, whose weights are already folded."""
    moments = metric(choice.fold, found, bits)
    quantized = coded(layer.weight, moments, float(found.effective), style, bits)
    return ranged(quantized, layer, choice, found)


def coded(
    weight: Tensor, moments: Tensor, tokens: float, style: Style, bits: int
) -> QuantizedLinear:
    """A layer of rounded weights, without a bias yet, or a range.

    `moments` [in, in]: what the errors are measured by, as good as a mean over `tokens` inputs.
    """
    scale, multipliers, step = weight_step(weight, moments, style, bits)
    # Few tokens say little of their covariance: shrink it by how many there are for each input.
    damping = 0.01 + len(moments) / tokens
    if style.rounding == "nearest":
        codes = quantizer.round_weight(weight, step, bits)
    else:
        codes = gptq(weight, step, moments, bits, damping)
    if style.rounding == "descent":
        codes = descend(weight, step, moments, codes, bits, damping)
        for _ in range(_REFITS if bits < 8 else 0):
            scale = storable(scale * refitted(weight, step, moments, codes, damping), bits)
            step = quantizer.weight_step(scale, multipliers, style.grouped(bits), len(moments))
            codes = descend(weight, step, moments, codes, bits, damping, _SWEEPS)
    outputs, inputs = weight.shape
    group = style.grouped(bits)
    quantized = QuantizedLinear(inputs, outputs, bits, style.activations, group=group)
    quantized.codes = quantizer.pack_weight(codes, bits)
    quantized.scale = scale
    if multipliers is not None:
        quantized.multipliers = quantizer.pack_multipliers(multipliers)
    return quantized


def weight_error(
    layer: nn.Linear, choice: Choice, found: LayerStatistics, style: Style, bits: int
) -> float:
    """The mean squared error of the output that weights of `bits` bits leave, as a share of its
    variance: rounded as asked for, but for the last refinement."""
    moments, spread = metric(choice.fold, found, bits), covariance(choice.fold, found)
    step = weight_step(layer.weight, moments, style, bits)[2]
    codes = quantizer.round_weight(layer.weight, step, bits)
    if style.rounding != "nearest":
        damping = 0.01 + len(moments) / float(found.effective)
        codes = gptq(layer.weight, step, moments, bits, damping)
    left = output_error(layer.weight, step, codes, spread).sum()
    whole = output_error(layer.weight, step, torch.zeros_like(codes), spread).sum()
    return float(left / whole.clamp_min(torch.finfo(torch.float64).tiny))


def ranged(
    quantized: QuantizedLinear,
    layer: nn.Linear,
    choice: Choice,
    found: LayerStatistics,
    terms: Literal[1, 2] = 1,
    fine_tokens: int | None = None,
) -> QuantizedLinear:
    """`quantized` with the range of `choice`, and the bias that makes its mean error zero."""
    ranged = with_range(copy.deepcopy(quantized), choice)
    ranged.terms, ranged.fine_tokens = terms, fine_tokens
    rows = choice.fold.apply(found.rows)
    ranged.bias = torch.zeros_like(ranged.bias)
    # Plainly over the sample: its first tokens, which the head reads, count for more than one each.
    ranged.bias = (layer(rows) - ranged(rows)).mean(0)
    return ranged


def with_range(quantized: QuantizedLinear, choice: Choice) -> QuantizedLinear:
    """`quantized`, with the range of `choice` where ranges are static (in place)."""
    if quantized.activations == "static":
        x_scale, zero_point = quantizer.activation_parameters(choice.low, choice.high)
        quantized.activation_scale = x_scale
        quantized.activation_zero_point = zero_point.to(torch.uint8)
    return quantized


def layer_error(
    quantized: QuantizedLinear, layer: nn.Linear, choice: Choice, found: LayerStatistics
) -> float | None:
    """The mean squared error of the output on the sample, as a share of its variance.

    None where some tokens have a second term: the sample does not tell which its rows are.
    """
    if quantized.fine_tokens is not None:
        return None
    rows = choice.fold.apply(found.rows)
    return _error(quantized(rows), layer(rows))


def roomy(choice: Choice, found: LayerStatistics) -> Choice:
    """Half as much again as was ever seen: with two terms there are steps to spare."""
    low, high, share = _ranges(choice.fold, found)[0]
    return replace(choice, low=1.5 * low, high=1.5 * high, share=share)


def probe(module: nn.Module, context: Context) -> Cost:
    """The measured cost of replacing layers of `module`, on a few calibration images."""
    pixels = torch.cat(list(context.calibration_batches("reading images", _PROBED)))
    module, pixels = placed(module, context.device), pixels.to(context.device)
    dense = module(pixels).log_softmax(-1)

    def cost(layers: Mapping[str, nn.Module]) -> float:
        before = {name: module.get_submodule(name) for name in layers}
        for name, layer in layers.items():
            module.set_submodule(name, placed(layer, context.device))
        now = module(pixels).log_softmax(-1)
        for name, layer in before.items():
            module.set_submodule(name, layer)
        return float(F.kl_div(now, dense, reduction="batchmean", log_target=True))

    return cost


def cheapest(
    name: str,
    layer: nn.Linear,
    choice: Choice,
    found: LayerStatistics,
    style: Style,
    bits: int,
    cost: Cost,
) -> tuple[QuantizedLinear, Choice, float]:
    """The layer in `bits` bits, with the range that costs the model least KL near the chosen one.

    A few tokens with huge activations may carry little of a layer's error and most of the model's:
    what to clip has the last word from the model's output. From the choice the search steps to
    wider ranges while that helps, else to narrower ones.
    """
    twin = rounded(layer, choice, found, style, bits)
    best = (twin, choice, cost({name: twin}))
    if style.activations == "dynamic":
        return best
    ladder = [replace(choice, low=a, high=b, share=s) for a, b, s in _ranges(choice.fold, found)]
    start = _SHARES.index(choice.share)
    for direction in (range(start - 1, -1, -1), range(start + 1, len(ladder))):
        for rung in direction:
            tried = ranged(twin, layer, ladder[rung], found)
            price = cost({name: tried})
            if price >= best[2]:
                break
            best = (tried, ladder[rung], price)
        if best[1] is not choice:
            break
    return best
