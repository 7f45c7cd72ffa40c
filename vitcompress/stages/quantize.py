"""Quantize: Linear layers in 8-bit integers, chosen so that their outputs change least.

For each layer the stage tries foldings of the input channels into the tensors before and after,
and ranges of the activations; each is judged by the error of the layer's output on sampled rows,
weights and activations rounded. The winner's weights are rounded with error feedback, and the mean
error that is left goes into the bias.
"""

import copy
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vitcompress.console import track
from vitcompress.methods import folding, quantizer
from vitcompress.methods.folding import Fold
from vitcompress.methods.histogram import quantiles
from vitcompress.methods.rounding import gptq
from vitcompress.model.architecture import QuantizedLayer, VitModel
from vitcompress.model.layers import Activations, QuantizedLinear
from vitcompress.model.structure import input_fold, linears, match
from vitcompress.stages.calibrate import LayerStatistics, statistics
from vitcompress.stages.context import Context

# Shares of the values that a static range holds; the rest is clipped at either end.
_SHARES = (1.0, 0.999999, 0.99999, 0.9999, 0.9997, 0.999)
_JUDGED_ROWS = 512  # enough to tell candidates apart


class QuantizeConfig(BaseModel):
    """Quantize the weights and the inputs of Linear layers.

    `layers`: patterns over layer names; `skip`: patterns taken out again. `activations`: `static`
    fixes each range from calibration images; `dynamic` takes it at run time from each batch.
    `rounding`: `gptq` feeds each rounding error to the weights not yet rounded. `fold`: move
    channel ranges into the neighbouring tensors where that lowers the error. `rest`: the type in
    which matrices that stay float (patch and position embeddings, …) are stored.
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
    layers = selected(model, config)
    found = statistics(model.module, model.fingerprint(), layers, context)
    module = copy.deepcopy(model.module)
    # Foldings first: that of one layer may change the weights of another.
    choices = {
        name: _choose(module, name, found[name], config)
        for name in track(layers, "choosing ranges", len(layers))
    }
    rows = [
        {"layer": name, **_round(module, name, choices[name], found[name], config)}
        for name in track(layers, "rounding weights", len(layers))
    ]
    return _described(model, module, layers, config), {
        "bits": config.bits,
        "activations": config.activations,
        "rounding": config.rounding,
        "quantized_layers": len(layers),
        "folded_layers": sum(choice.fold.strength > 0 for choice in choices.values()),
        "layers": rows,
    }


def selected(model: VitModel, config: QuantizeConfig) -> list[str]:
    """The names of the layers that `config` selects, in the order of the model."""
    names = list(linears(model.module))
    key = f"stages.{config.name}"
    skipped = set(match(config.skip, names, f"{key}.skip"))
    return [n for n in match(config.layers, names, f"{key}.layers") if n not in skipped]


def _described(
    model: VitModel, module: nn.Module, layers: list[str], config: QuantizeConfig
) -> VitModel:
    """`module` with the description that belongs to it."""
    layer = QuantizedLayer(bits=config.bits, activations=config.activations)
    half: tuple[str, ...] = ()
    if config.rest == "float16":
        matrices = {n: p for n, p in module.named_parameters() if p.ndim > 1}
        for parameter in matrices.values():
            parameter.copy_(parameter.half())
        half = tuple(matrices)
    quantized = {**model.architecture.quantized, **dict.fromkeys(layers, layer)}
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
    rows = (found.rows[:_JUDGED_ROWS] - fold.shift) / fold.scale
    weight = weight * fold.scale
    target = rows @ weight.T
    scale = quantizer.weight_scale(weight, config.bits, _mean_square(fold, found))
    codes = quantizer.round_weight(weight, scale, config.bits)
    power = (target - target.mean(0)).square().mean()

    def choice(low: Tensor, high: Tensor, share: float) -> _Choice:
        x_scale, zero_point = quantizer.activation_parameters(low, high)
        x = quantizer.quantize_activation(rows, x_scale, zero_point) * x_scale
        error = (x @ (codes * scale[:, None]).T - target).square().mean() / power
        return _Choice(fold, low, high, share, float(error))

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


def _mean_square(fold: Fold, found: LayerStatistics) -> Tensor:
    """E[x²] of each channel of the folded input, [in]."""
    mean = found.total / found.tokens
    square = found.gram.diagonal() / found.tokens - 2 * fold.shift * mean + fold.shift.square()
    return (square / fold.scale.square()).float()


def _gram(fold: Fold, found: LayerStatistics) -> Tensor:
    """The mean of x xᵀ of the folded input, float64 [in, in]."""
    mean, shift = found.total / found.tokens, fold.shift.double()
    moved = found.gram / found.tokens - torch.outer(shift, mean) - torch.outer(mean, shift)
    return (moved + torch.outer(shift, shift)) / torch.outer(fold.scale, fold.scale)


def _round(
    module: nn.Module, name: str, choice: _Choice, found: LayerStatistics, config: QuantizeConfig
) -> dict[str, Any]:
    """Put the quantized layer in the place of `name`; what was chosen for it, for the report."""
    layer = cast(nn.Linear, module.get_submodule(name))
    bits = config.bits
    scale = quantizer.weight_scale(layer.weight, bits, _mean_square(choice.fold, found))
    if config.rounding == "gptq":
        codes = gptq(layer.weight, scale, _gram(choice.fold, found), bits)
    else:
        codes = quantizer.round_weight(layer.weight, scale, bits)
    quantized = QuantizedLinear(layer.in_features, layer.out_features, bits, config.activations)
    quantized.codes = quantizer.pack_weight(codes, bits)
    quantized.scale = scale
    if layer.bias is not None:
        quantized.bias = layer.bias.detach().clone()
    if config.activations == "static":
        x_scale, zero_point = quantizer.activation_parameters(choice.low, choice.high)
        quantized.activation_scale = x_scale
        quantized.activation_zero_point = zero_point.to(torch.uint8)
    rows = (found.rows - choice.fold.shift) / choice.fold.scale
    target: Tensor = layer(rows)
    # The mean of the error over the sample is made good by the bias.
    quantized.bias = quantized.bias - (quantized(rows) - target).mean(0)
    error = (quantized(rows) - target).square().mean() / (target - target.mean(0)).square().mean()
    module.set_submodule(name, quantized)
    return {
        "fold": choice.fold.strength,
        "clipped_share": 1 - choice.share,
        "output_error": float(error),
    }
