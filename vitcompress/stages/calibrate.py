"""Calibrate: one streaming pass over unlabelled images, for what the other stages need.

Memory does not grow with the number of images: per layer it holds ranges, histograms, a Gram
matrix and a fixed number of sampled input rows.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitcompress.methods import saliency
from vitcompress.methods.histogram import Histogram
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context

_ROWS = 2048  # sampled input rows a layer
_VERSION = 6  # of what is collected, part of the cache key

Weights = Literal["even", "importance", "both"]
"""What the inputs of a layer are weighed by: nothing, their importance, or half and half."""


@dataclass
class LayerStatistics:
    """What the inputs of one layer look like, [tokens, in] over all calibration images.

    `low`, `high` [in]: exact ranges. `limit` [in] and `counts` [in, bins]: histograms.
    `weight` [], `total` [in] and `gram` [in, in], float64: sums of w, of w·x and of w·x xᵀ over the
    tokens. `rows` [≤ 2048, in]: a sample of x, in random order: the first token of each image, as
    far as there is room, and others at random.
    `output_weights` [out]: the mean importance of each output.

    The weight w of a token is 1 where weights are `even`. It is its `importance`, the mean square
    of a gradient at the layer's output that has the Fisher information of the model's own softmax
    as its covariance; or the mean of `both`, importances having a mean of 1 in each batch. The
    mean of w over tokens is 1. `effective` []: how many tokens of equal weight would tell as much,
    (Σ w)² / Σ w².
    """

    low: Tensor
    high: Tensor
    limit: Tensor
    counts: Tensor
    weight: Tensor
    effective: Tensor
    total: Tensor
    gram: Tensor
    rows: Tensor
    output_weights: Tensor

    @property
    def histogram(self) -> Histogram:
        return Histogram(self.limit, self.counts)


class _Rows:
    """At most `room` rows, in one block of memory that does not move: small pieces kept among the
    large ones that each batch takes and returns would fragment the heap."""

    def __init__(self, room: int, channels: int) -> None:
        self.values, self.used = torch.empty(room, channels), 0

    def add(self, values: Tensor) -> None:
        new = min(len(values), len(self.values) - self.used)
        self.values[self.used : self.used + new] = values[:new]
        self.used += new


class _Accumulator:
    def __init__(self, channels: int, outputs: int) -> None:
        self.tokens = 0
        self.low = torch.full((channels,), torch.inf)
        self.high = torch.full((channels,), -torch.inf)
        self.histogram = Histogram.empty(channels)
        self.weight = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.gram = torch.zeros(channels, channels, dtype=torch.float64)
        self.output_weights = torch.zeros(outputs, dtype=torch.float64)
        self.rows = _Rows(_ROWS, channels)

    def update(self, x: Tensor, importance: Tensor, sampled: Tensor) -> None:
        """Add one batch: inputs and importances of outputs, [images, tokens, in or out]."""
        flat, weights = x.flatten(0, 1), importance.mean(-1)
        self.tokens += len(flat)
        self.low = torch.minimum(self.low, flat.amin(0))
        self.high = torch.maximum(self.high, flat.amax(0))
        self.histogram.update(flat)
        weighted = flat * weights.flatten()[:, None]
        self.weight += weights.sum(dtype=torch.float64)
        self.squares += weights.double().square().sum()
        self.total += weighted.sum(0, dtype=torch.float64)
        self.gram += weighted.T @ flat
        self.output_weights += importance.sum((0, 1), dtype=torch.float64)
        self.rows.add(x[:, sampled].flatten(0, 1))

    def finish(self) -> LayerStatistics:
        mean = (self.weight / self.tokens).clamp_min(1e-30)
        order = torch.randperm(self.rows.used, generator=torch.Generator().manual_seed(0))
        return LayerStatistics(
            low=self.low,
            high=self.high,
            limit=self.histogram.limit,
            counts=self.histogram.counts,
            weight=self.weight / mean,
            effective=self.weight.square() / self.squares.clamp_min(1e-300),
            total=self.total / mean,
            gram=self.gram / mean,
            rows=self.rows.values[order],
            output_weights=(self.output_weights / self.output_weights.mean()).float(),
        )


def _by_token(x: Tensor) -> Tensor:
    """[images, ..., features] → [images, tokens, features], on the CPU."""
    x = x.detach().cpu()
    return x.flatten(1, -2) if x.ndim > 2 else x[:, None]


def collect(
    module: nn.Module,
    layers: Iterable[str],
    batches: Iterable[Tensor],
    images: int,
    seed: int,
    weights: Weights = "even",
) -> dict[str, LayerStatistics]:
    """Run `module` over `batches` of pixels and gather the statistics of the `layers`' inputs.

    Importances take one backward pass a batch.
    """
    gradients = weights != "even"
    generator = torch.Generator().manual_seed(seed)
    rows_per_image = max(1, _ROWS // images)
    found: dict[str, _Accumulator] = {}

    def see(name: str, x: Tensor, importance: Tensor) -> None:
        x, importance = _by_token(x), _by_token(importance)
        if weights == "both":
            importance = (1 + importance / importance.mean().clamp_min(1e-30)) / 2
        accumulator = found.setdefault(name, _Accumulator(x.shape[-1], importance.shape[-1]))
        others = torch.randperm(x.shape[1] - 1, generator=generator)[: rows_per_image - 1] + 1
        accumulator.update(x, importance, torch.cat([torch.zeros(1, dtype=torch.long), others]))

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if gradients and output.requires_grad:
                output.register_hook(lambda g: see(name, inputs[0], g.square()))
            else:  # also what no image reaches, as the latent query of attention pooling
                see(name, inputs[0], torch.ones_like(output))

        return module.get_submodule(name).register_forward_hook(after)

    handles = [hook(name) for name in layers]
    try:
        with torch.set_grad_enabled(gradients):
            for pixels in batches:
                logits = module(pixels.detach().requires_grad_(gradients))
                if gradients:
                    (logits * saliency.fisher_readout(logits, generator)).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    return {name: found.pop(name).finish() for name in layers}


def statistics(
    module: nn.Module,
    fingerprint: str,
    layers: list[str],
    context: Context,
    weights: Weights = "even",
) -> dict[str, LayerStatistics]:
    """The statistics of `layers` over the calibration images, from the cache where it has them.

    The cache is keyed by the content of the model (`fingerprint`), of the images and by the seed.
    """
    images = context.calibration_fingerprint
    identity = [_VERSION, fingerprint, images, layers, weights, context.seed]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    file = context.cache / f"calibration-{key}.safetensors"
    if context.resume and file.is_file():
        context.say(f"calibration results reused from {file.name}")
        return _unflatten(load_file(file))
    batches = (pixels.to(context.device) for pixels in context.calibration_batches("calibrating"))
    module = placed(module, context.device)
    result = collect(module, layers, batches, len(context.images), context.seed, weights)
    context.keep(file, lambda path: save_file(_flatten(result), path))
    return result


def _flatten(statistics: Mapping[str, LayerStatistics]) -> dict[str, Tensor]:
    return {
        f"{layer}/{field.name}": getattr(value, field.name).contiguous()
        for layer, value in statistics.items()
        for field in fields(value)
    }


def _unflatten(tensors: Mapping[str, Tensor]) -> dict[str, LayerStatistics]:
    layers = list(dict.fromkeys(name.rpartition("/")[0] for name in sorted(tensors)))
    return {
        layer: LayerStatistics(
            **{f.name: tensors[f"{layer}/{f.name}"] for f in fields(LayerStatistics)}
        )
        for layer in layers
    }
