"""One layer of the quantize stage: the channels and the range of its input, its rounded weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from vitcompress.methods import quantizer
from vitcompress.methods.compensation import VARYING, varying
from vitcompress.methods.histogram import quantiles
from vitcompress.methods.reparametrisation import (
    STRENGTHS,
    Reparametrisation,
    identity,
    levelled,
    reparametrisations,
)
from vitcompress.methods.rounding import output_error
from vitcompress.model.anatomy import Anatomy
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.calibrate import LayerStatistics
from vitcompress.stages.quantize.config import Style
from vitcompress.stages.quantize.rounding import Lattice, Metric, rounding_of
from vitcompress.terms import Activations

# Shares of the values that a static range holds; the rest is clipped at either end.
_SHARES = (1.0, *(1 - 10.0**-digits for digits in (6, 5.5, 5, 4.75, 4.5, 4.25, 4, 3.5, 3)))
_JUDGED_ROWS = 512  # enough to tell candidates apart
_DAMPING = 0.01  # of what errors of weights are measured by; more, the fewer tokens there are


@dataclass(frozen=True)
class InputRange:
    """One way to quantize a layer's input: how its channels change, its range, the error left."""

    change: Reparametrisation
    low: Tensor
    high: Tensor
    share: float
    error: float

    def static_range(self, activations: Activations) -> tuple[Tensor, Tensor] | None:
        """Scale and zero point of the input; None where none are fixed."""
        if activations != "static":
            return None
        return quantizer.activation_parameters(self.low, self.high)

    def seen(self, x: Tensor, activations: Activations, terms: int = 1) -> Tensor:
        """The input `x` as the layer multiplies it."""
        if activations == "float":
            return x
        return quantizer.rounded_input(x, self.static_range(activations), terms)


def best_input_range(
    anatomy: Anatomy,
    name: str,
    found: LayerStatistics,
    style: Style,
    bits: int,
    reparametrise: bool,
) -> InputRange:
    """The change and the range of the least output error; the change is applied to the model."""
    weight = cast(nn.Linear, anatomy.module.get_submodule(name)).weight
    plain = _best_range(identity(weight.shape[1]), weight, found, style, bits)
    apply = anatomy.input_reparametrisation(name) if reparametrise else None
    if apply is None:
        return plain
    changes = changes_of(anatomy, name, found)
    reparametrised = (_best_range(each, weight, found, style, bits) for each in changes)
    best = min((plain, *reparametrised), key=lambda input_range: input_range.error)
    if best is not plain:
        apply(best.change.shift, best.change.scale)
    return best


def changes_of(
    anatomy: Anatomy, name: str, found: LayerStatistics, strengths: Sequence[float] = STRENGTHS
) -> list[Reparametrisation]:
    """What may be done to the inputs of the Linear `name`; `strengths`: of `reparametrisations`."""
    if (alike := anatomy.inputs_alike(name)) > 1:
        return [levelled(found.low, found.high, alike)]
    return list(reparametrisations(found.low, found.high, strengths))


def _best_range(
    change: Reparametrisation,
    weight: Tensor,
    found: LayerStatistics,
    style: Style,
    bits: int,
) -> InputRange:
    """The range with the least output error under `change`, weights rounded to nearest."""
    rows, weight, target = trial(change, weight, found, style, bits)
    whole = _power(target)

    def input_range(low: Tensor, high: Tensor, share: float) -> InputRange:
        tried = InputRange(change, low, high, share, 0.0)
        error = (tried.seen(rows, judged) @ weight.T).sub_(target).square_().mean()
        return replace(tried, error=float(error / whole))

    # Ranges that are taken at run time are at their widest that of the calibration images.
    judged: Activations = "float" if style.activations == "float" else "static"
    ranges = _ranges(change, found)
    if style.activations != "static":
        ranges = ranges[:1]
    return min((input_range(*r) for r in ranges), key=lambda c: c.error)


def trial(
    change: Reparametrisation,
    weight: Tensor,
    found: LayerStatistics,
    style: Style,
    bits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of the input under `change`, weights rounded to nearest, and the float outputs."""
    rows = change.apply(found.rows[:_JUDGED_ROWS])
    weight = weight * change.scale
    lattice = _lattice(weight, gram(change, found).diagonal(), style, bits)
    return rows, lattice.nearest(weight) * lattice.step, rows @ weight.T


def _lattice(weight: Tensor, squares: Tensor, style: Style, bits: int) -> Lattice:
    return Lattice.of(weight, squares, bits, style.group, style.codebook)


def _ranges(
    change: Reparametrisation, found: LayerStatistics
) -> list[tuple[Tensor, Tensor, float]]:
    """Ranges of the changed input that hold the shares `_SHARES` of all values, widest first."""
    low, high = (
        (found.low - change.shift) / change.scale,
        (found.high - change.shift) / change.scale,
    )
    centres = (found.histogram.centres() - change.shift[:, None]) / change.scale[:, None]
    shares = torch.tensor(_SHARES[1:])
    ends = quantiles(
        centres.flatten(), found.counts.flatten(), torch.cat([(1 - shares) / 2, (1 + shares) / 2])
    ).clamp(low.amin(), high.amax())
    lows, highs = ends.chunk(2)
    return [(low.amin(), high.amax(), 1.0), *zip(lows, highs, _SHARES[1:], strict=True)]


def _power(target: Tensor) -> Tensor:
    """What errors of `target` [rows, out] are a share of: its variance; where it never changes, its
    mean square."""
    variance = (target - target.mean(0)).square().mean()
    square = target.square().mean()
    whole = variance if variance > VARYING * square else square
    return whole.clamp_min(torch.finfo(torch.float32).tiny)


def gram(change: Reparametrisation, found: LayerStatistics) -> Tensor:
    """The mean of x xᵀ of the changed input, float64 [in, in]."""
    mean, shift = found.total / found.weight, change.shift.double()
    moved = found.gram / found.weight - torch.outer(shift, mean) - torch.outer(mean, shift)
    return (moved + torch.outer(shift, shift)) / torch.outer(change.scale, change.scale)


def input_covariance(change: Reparametrisation, found: LayerStatistics) -> Tensor:
    """The covariance of the changed input, float64 [in, in], since the mean error of an output goes
    into its bias; the mean of x xᵀ for an input that never changes, whose covariance is rounding
    errors."""
    mean = found.total / found.weight
    covariance = (found.gram / found.weight - torch.outer(mean, mean)) / torch.outer(
        change.scale, change.scale
    )
    return varying(covariance, gram(change, found))


def metric(change: Reparametrisation, found: LayerStatistics, bits: int) -> Metric:
    """What errors of weights are measured by: the `input_covariance`; for 8 bits, whose rounding
    loses little, the mean of x xᵀ."""
    moments = input_covariance(change, found) if bits < 8 else gram(change, found)
    return damped(moments, float(found.effective))


def damped(moments: Tensor, tokens: float) -> Metric:
    """`moments` [in, in], as good as a mean over so many `tokens`, as a metric."""
    return Metric(moments, _DAMPING + len(moments) / tokens)


def rounded_layer(
    layer: nn.Linear, input_range: InputRange, found: LayerStatistics, style: Style, bits: int
) -> QuantizedLinear:
    """The quantized twin of `layer`, whose weights are already reparametrised."""
    quantized = coded(layer.weight, metric(input_range.change, found, bits), style, bits)
    return ranged(quantized, layer, input_range, found)


def coded(weight: Tensor, metric: Metric, style: Style, bits: int) -> QuantizedLinear:
    """A layer of rounded weights, without a bias yet, or a range."""
    rounding = rounding_of(style.rounding)
    lattice = _lattice(weight, metric.gram.diagonal(), style, bits)
    codes = rounding.codes(weight, lattice, metric)
    if rounding.refined is not None:
        lattice, codes = rounding.refined(weight, lattice, metric, codes)
    outputs, inputs = weight.shape
    quantized = QuantizedLinear(inputs, outputs, bits, style.activations, group=lattice.group)
    quantized.levels = lattice.levels
    quantized.codes = quantizer.pack_weight(codes, lattice.levels)
    quantized.scale = lattice.scale
    if lattice.multipliers is not None:
        quantized.multipliers = quantizer.pack_multipliers(lattice.multipliers)
    return quantized


def weight_error(
    layer: nn.Linear, input_range: InputRange, found: LayerStatistics, style: Style, bits: int
) -> float:
    """The mean squared error of the output that weights of `bits` bits leave, as a share of its
    variance: rounded as asked for, but for the last refinement."""
    measure, variance = (
        metric(input_range.change, found, bits),
        input_covariance(input_range.change, found),
    )
    lattice = _lattice(layer.weight, measure.gram.diagonal(), style, bits)
    codes = rounding_of(style.rounding).codes(layer.weight, lattice, measure)
    left = output_error(layer.weight, lattice.step, codes, variance).sum()
    whole = output_error(layer.weight, lattice.step, torch.zeros_like(codes), variance).sum()
    return float(left / whole.clamp_min(torch.finfo(torch.float64).tiny))


def ranged(
    quantized: QuantizedLinear,
    layer: nn.Linear,
    input_range: InputRange,
    found: LayerStatistics,
    terms: Literal[1, 2] = 1,
    residual_tokens: int | None = None,
) -> QuantizedLinear:
    """`quantized` with the range of `input_range`, and the bias that makes its mean error zero.

    Plainly over the sample: its first tokens, which the head reads, count for more than one each.
    Where only some tokens have a second term, the mean is that of the others.
    """
    twin = with_range(copy.deepcopy(quantized), input_range)
    twin.terms, twin.residual_tokens = terms, residual_tokens
    rows = input_range.change.apply(found.rows)
    seen = input_range.seen(rows, quantized.activations, 1 if residual_tokens else terms)
    # Layers are linear: the mean of the outputs is the output of the mean.
    missing = layer(rows.mean(0, dtype=torch.float64).float())
    twin.bias = torch.zeros_like(twin.bias)
    given = twin.dequantized()(seen.mean(0, dtype=torch.float64).float())
    twin.bias = missing - given
    return twin


def with_range(quantized: QuantizedLinear, input_range: InputRange) -> QuantizedLinear:
    """`quantized`, with the range of `input_range` where ranges are static (in place)."""
    if (fixed := input_range.static_range(quantized.activations)) is not None:
        quantized.activation_scale = fixed[0]
        quantized.activation_zero_point = fixed[1].to(torch.uint8)
    return quantized


def layer_error(
    quantized: QuantizedLinear, layer: nn.Linear, input_range: InputRange, found: LayerStatistics
) -> float | None:
    """The mean squared error of the output on the sample, as a share of its variance.

    None where some tokens have a second term: the sample does not tell which its rows are.
    """
    if quantized.residual_tokens is not None:
        return None
    rows = input_range.change.apply(found.rows)
    target = layer(rows)
    return float((quantized(rows) - target).square().mean() / _power(target))


def with_residual(input_range: InputRange, found: LayerStatistics) -> InputRange:
    """Half as much again as was ever seen: with two terms there are steps to spare."""
    low, high, share = _ranges(input_range.change, found)[0]
    return replace(input_range, low=1.5 * low, high=1.5 * high, share=share)


def ladder(input_range: InputRange, found: LayerStatistics) -> list[InputRange]:
    """`input_range` with all ranges that are tried, widest first."""
    ranges = _ranges(input_range.change, found)
    return [replace(input_range, low=low, high=high, share=s) for low, high, s in ranges]
