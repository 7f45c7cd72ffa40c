"""Calibrate: one streaming pass over unlabelled images, for what the other stages need.

Memory does not grow with the number of images: per layer it holds ranges, histograms, a Gram
matrix and a fixed number of sampled input rows.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitcompress.methods.histogram import Histogram
from vitcompress.stages.context import Context

_ROWS = 2048  # sampled input rows a layer
_VERSION = 1  # of what is collected, part of the cache key


@dataclass
class LayerStatistics:
    """What the inputs of one layer look like, [tokens, in] over all calibration images.

    `low`, `high` [in]: exact ranges. `limit` [in] and `counts` [in, bins]: histograms.
    `total` [in] and `gram` [in, in], float64: sums of x and of x xᵀ over `tokens` rows.
    `rows` [≤ 2048, in]: a sample, the first token of each image always among it.
    """

    tokens: Tensor
    low: Tensor
    high: Tensor
    limit: Tensor
    counts: Tensor
    total: Tensor
    gram: Tensor
    rows: Tensor

    @property
    def histogram(self) -> Histogram:
        return Histogram(self.limit, self.counts)


class _Accumulator:
    def __init__(self, channels: int) -> None:
        self.tokens = 0
        self.low = torch.full((channels,), torch.inf)
        self.high = torch.full((channels,), -torch.inf)
        self.histogram = Histogram.empty(channels)
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.gram = torch.zeros(channels, channels, dtype=torch.float64)
        self.rows: list[Tensor] = []

    def update(self, x: Tensor, rows_per_image: int, generator: torch.Generator) -> None:
        """Add one batch of inputs [images, ..., in]."""
        x = x.cpu()
        x = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
        flat = x.flatten(0, 1)
        self.tokens += len(flat)
        self.low = torch.minimum(self.low, flat.amin(0))
        self.high = torch.maximum(self.high, flat.amax(0))
        self.histogram.update(flat)
        self.total += flat.sum(0, dtype=torch.float64)
        self.gram += (flat.T @ flat).double()
        others = torch.randperm(x.shape[1] - 1, generator=generator)[: rows_per_image - 1] + 1
        self.rows.append(x[:, [0, *others.tolist()]].flatten(0, 1).clone())

    def finish(self) -> LayerStatistics:
        return LayerStatistics(
            tokens=torch.tensor(self.tokens),
            low=self.low,
            high=self.high,
            limit=self.histogram.limit,
            counts=self.histogram.counts,
            total=self.total,
            gram=self.gram,
            rows=torch.cat(self.rows)[:_ROWS].contiguous(),
        )


def collect(
    module: nn.Module, layers: Iterable[str], batches: Iterable[Tensor], images: int, seed: int
) -> dict[str, LayerStatistics]:
    """Run `module` over `batches` of pixels and gather the statistics of the `layers`' inputs."""
    generator = torch.Generator().manual_seed(seed)
    rows_per_image = max(1, _ROWS // images)
    found: dict[str, _Accumulator] = {}

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            accumulator = found.setdefault(name, _Accumulator(inputs[0].shape[-1]))
            accumulator.update(inputs[0], rows_per_image, generator)

        return module.get_submodule(name).register_forward_pre_hook(see)

    handles = [hook(name) for name in layers]
    try:
        with torch.inference_mode():
            for pixels in batches:
                module(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return {name: accumulator.finish() for name, accumulator in found.items()}


def statistics(
    module: nn.Module, fingerprint: str, layers: list[str], context: Context
) -> dict[str, LayerStatistics]:
    """The statistics of `layers` over the calibration images, from the cache where it has them.

    The cache is keyed by the content of the model (`fingerprint`), of the images and by the seed.
    """
    identity = [_VERSION, fingerprint, context.calibration_fingerprint, layers, context.seed]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    file = context.cache / f"calibration-{key}.safetensors"
    if context.resume and file.is_file():
        context.say(f"calibration results reused from {file.name}")
        return _unflatten(load_file(file))
    batches = (pixels.to(context.device) for pixels in context.calibration_batches("calibrating"))
    result = collect(module, layers, batches, context.calibration_count, context.seed)
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
