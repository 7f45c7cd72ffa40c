"""Calibrate: one streaming pass over unlabelled images, for what the other stages need.

Memory does not grow with the number of images: per layer it holds ranges, histograms, a Gram
matrix and a fixed number of sampled input rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from vitcompress import parallel
from vitcompress.errors import InputError
from vitcompress.memory import Room, in_memory
from vitcompress.methods.histogram import BINS, Histogram
from vitcompress.model.architecture import VitModel
from vitcompress.model.structure import placed
from vitcompress.stages.cache import tensors
from vitcompress.stages.context import BATCH, Context
from vitcompress.stages.observe import Watch, observe, unlabelled

_ROWS = 2048  # sampled input rows a layer
_CALIBRATION = tensors("calibration", version=7)

_NOTHING = 1e-30  # what outputs are worth that reach no answer: all of them alike

Weights = Literal["even", "importance", "both"]
"""What the inputs of a layer are weighed by: nothing, their importance, or half and half."""


@dataclass
class LayerStatistics:
    """What the inputs of one layer look like, [tokens, in] over all calibration images.

    `low`, `high` [in]: exact ranges. `limit` [in] and `counts` [in, bins]: histograms.
    `weight` [], `total` [in] and `gram` [in, in], float64: sums of w, of w·x and of w·x xᵀ over the
    tokens. `rows` [≤ 2048, in]: a sample of x, in random order: the first tokens of all
    images, or of 1024 of them, and others at random, from as many.
    `output_weights` [out]: the mean importance of each output.

    The weight w of a token is 1 where weights are `even`. It is its `importance`, the mean square
    of the gradient of the task's read-out at the layer's output (for classes, as much as Fisher
    information); or the mean of `both`, importances having a mean of 1 in each batch. The
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


Pick = Callable[[int, int, int], tuple[Tensor, ...]]
"""Of so many images, after so many others, of so many tokens each: which to keep, as an index."""


Sampled = Callable[[Tensor, int], Pick]
"""Of what a layer gets for a batch, and how many images that has: how its rows are picked."""


class _Rows:
    """At most `room` rows, in one block of memory that does not move: small pieces kept among the
    large ones that each batch takes and returns would fragment the heap."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.used = values, 0
        self.sizes = list[int]()  # of what was added

    def add(self, values: Tensor) -> None:
        new = min(len(values), len(self.values) - self.used)
        self.values[self.used : self.used + new] = values[:new]
        self.used += new
        self.sizes.append(new)

    def share(self) -> None:
        """Hold those of all processes, in the order of one."""
        parts = parallel.gathered(self.values[: self.used].split(self.sizes))
        self.used = 0
        for part in parts:
            self.add(part)


class _Accumulator:
    def __init__(self, channels: int, outputs: int, room: Room) -> None:
        self.images = self.tokens = 0
        self.low = torch.full((channels,), torch.inf)
        self.high = torch.full((channels,), -torch.inf)
        self.histogram = Histogram.empty(channels)
        self.histogram.counts = room(self.histogram.counts)
        self.weight = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.gram = room(torch.zeros(channels, channels, dtype=torch.float64))
        self.output_weights = torch.zeros(outputs, dtype=torch.float64)
        self.rows = _Rows(room(torch.zeros(_ROWS, channels)))

    def update(self, x: Tensor, importance: Tensor | None, sample: Pick, before: int) -> None:
        """Add one batch: inputs and importances of outputs, [images, tokens, in or out].

        `importance`: None where all have the same, 1. `before`: how many images of other processes
        come before.
        """
        self.rows.add(x[sample(before + self.images, *x.shape[:2])])
        flat = x.flatten(0, 1)
        self.images += len(x)
        self.tokens += len(flat)
        self.low = torch.minimum(self.low, flat.amin(0))
        self.high = torch.maximum(self.high, flat.amax(0))
        self.histogram.update(flat)
        if importance is None:
            self.weight += len(flat)
            self.squares += len(flat)
            self.total += flat.sum(0, dtype=torch.float64)
            self.gram += flat.T @ flat
            self.output_weights += len(flat)
            return
        weights = importance.mean(-1)
        weighted = flat * weights.flatten()[:, None]
        self.weight += weights.sum(dtype=torch.float64)
        self.squares += weights.double().square().sum()
        self.total += weighted.sum(0, dtype=torch.float64)
        self.gram += weighted.T @ flat
        self.output_weights += importance.sum((0, 1), dtype=torch.float64)

    def share(self) -> None:
        """Hold what all processes have accumulated."""
        highest = parallel.largest(
            {"low": -self.low, "high": self.high, "of": self.histogram.limit}
        )
        self.low, self.high = -highest["low"], highest["high"]
        self.histogram.widen(highest["of"])
        sums = ("weight", "squares", "total", "gram", "output_weights")
        own = {name: getattr(self, name) for name in sums}
        counts = {"tokens": torch.tensor(self.tokens), "counts": self.histogram.counts}
        whole = parallel.summed({**own, **counts})
        for name in sums:
            getattr(self, name).copy_(whole[name])
        self.tokens = int(whole["tokens"])
        self.histogram.counts.copy_(whole["counts"])
        self.rows.share()

    def finish(self) -> LayerStatistics:
        """What came of it, in the place of what was accumulated."""
        mean = (self.weight / self.tokens).clamp_min(1e-30)
        order = torch.randperm(self.rows.used, generator=torch.Generator().manual_seed(0))
        rows = self.rows.values[: self.rows.used]
        return LayerStatistics(
            low=self.low,
            high=self.high,
            limit=self.histogram.limit,
            counts=self.histogram.counts,
            weight=self.weight / mean,
            effective=self.weight.square() / self.squares.clamp_min(1e-300),
            total=self.total / mean,
            gram=self.gram.div_(mean),
            rows=rows.copy_(rows[order]),
            output_weights=(self.output_weights / self.output_weights.mean()).float(),
        )


def statistics_bytes(channels: int) -> int:
    """What the statistics of a layer with so many inputs take, but for single rows."""
    return channels * (8 * channels + 4 * _ROWS + 4 * BINS)


def _sample_alike(share: int, generator: torch.Generator) -> Pick:
    """The first token and `share` − 1 others of every image, the same ones in all of a batch."""

    def sample(_: int, images: int, tokens: int) -> tuple[Tensor, ...]:
        others = torch.randperm(tokens - 1, generator=generator)[: share - 1] + 1
        kept = torch.cat([torch.zeros(1, dtype=torch.long), others])
        return torch.arange(images).repeat_interleave(len(kept)), kept.repeat(images)

    return sample


def _sample_apart(total: int, leads: bool, generator: torch.Generator) -> Pick:
    """2048 rows from all over `total` images, each image's own.

    Half of them are first tokens, where one `leads`; all else is drawn at random. Of more than
    1024 images each half comes from 1024, as evenly spaced as can be.
    """
    half = _ROWS // 2

    def sample(seen: int, images: int, tokens: int) -> tuple[Tensor, ...]:
        ends = torch.arange(seen, seen + images + 1) * half
        first = (ends // total).diff()
        other = ((2 * ends + total) // (2 * total)).diff()
        order = torch.rand(images, tokens, generator=generator)
        if leads:  # where it is not its turn, only for want of others
            order[:, 0] = torch.where(first > 0, -1.0, 2.0)
        ranks = order.argsort(1).argsort(1)
        return (ranks < (first + other)[:, None],)

    return sample


def _sampled(images: int, leads: bool, generator: torch.Generator) -> Sampled:
    """Which rows to keep of `images` in all, whose first token `leads`."""
    windows = _sample_apart(images, False, generator)
    if images > _ROWS // 2:
        whole = _sample_apart(images, leads, generator)
    else:
        whole = _sample_alike(_ROWS // images, generator)
    return lambda x, batch: windows if _windowed(x, batch) else whole


def _draws(
    model: VitModel,
    watched: Sequence[tuple[str, Literal["output"] | None]],
    sampled: Sampled,
    generator: torch.Generator,
) -> list[Callable[[int], object]]:
    """All that a batch draws, in its order, each of how many images it has.

    Found on two blank images. A process that is alone need not draw for others.
    """
    draws = list[Callable[[int], object]]()
    if parallel.alone():
        return draws

    def see(x: Tensor, _: Tensor, __: Tensor | None) -> None:
        sample, rows = sampled(x, 2), _by_image(x, 2)
        images, tokens = rows.shape[:2]  # one: what is the same for all images
        draws.append(lambda n: sample(0, n if images == 2 else images, tokens))

    def loss(output: Tensor, _: Tensor | None) -> Tensor:
        blank = output.detach()[:1]
        draws.append(lambda n: model.task.readout(blank.new_zeros(n, *blank.shape[1:]), generator))
        return output.sum()

    device = next(iter(model.module.state_dict().values())).device
    blank = torch.zeros(2, model.preprocess.channels, *model.preprocess.input_size, device=device)
    watches = [Watch(name, see, gradient) for name, gradient in watched]
    gradients = any(gradient for _, gradient in watched)
    observe(model.module, watches, [(blank, None)], loss if gradients else None)
    return draws


def _share(found: dict[str, _Accumulator], room: Room) -> None:
    """Give all processes what they have found together (in place)."""
    if parallel.alone():
        return
    sizes = {name: (len(own.low), len(own.output_weights)) for name, own in found.items()}
    every = {name: size for each in parallel.everybody(sizes) for name, size in each.items()}
    for name, size in every.items():
        found.setdefault(name, _Accumulator(*size, room)).share()


def _by_image(x: Tensor, images: int) -> Tensor:
    """[images or their windows, ..., features] → [images, tokens, features], on the CPU."""
    x = x.detach().cpu()
    x = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
    return x.unflatten(0, (images, -1)).flatten(1, 2) if _windowed(x, images) else x


def _windowed(x: Tensor, images: int) -> bool:
    """Whether a layer sees its input in parts, several of each image."""
    return len(x) > images and len(x) % images == 0


def collect(
    model: VitModel,
    layers: Iterable[str],
    batches: Iterable[Tensor],
    images: int,
    seed: int,
    weights: Weights = "even",
    room: Room = in_memory,
) -> dict[str, LayerStatistics]:
    """Run `model` over `batches` of pixels and gather the statistics of the `layers`' inputs.

    Importances take one backward pass a batch. `room`: where the statistics are kept. Raises
    `InputError` for a layer that the model has but does not call.
    """
    gradients = weights != "even"
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, _Accumulator] = {}
    batch = others = 0  # images in it, and before it those of other processes
    sampled = _sampled(images, model.anatomy.prefix_tokens > 0, generator)
    names = list(layers)
    watched: Literal["output"] | None = "output" if gradients else None
    draws = _draws(model, [(name, watched) for name in names], sampled, generator)

    def counted() -> Iterator[Tensor]:
        nonlocal batch, others
        for number, pixels in enumerate(batches):
            for _ in range(parallel.passed_over(number)):
                others += BATCH
                for draw in draws:
                    draw(BATCH)
            batch = len(pixels)
            yield pixels

    def see(name: str, x: Tensor, y: Tensor, gradient: Tensor | None) -> None:
        sample = sampled(x, batch)
        x, importance = _by_image(x, batch), None
        if gradient is not None:  # there is none at what no image reaches
            importance = _by_image(gradient.square(), batch).clamp_min(_NOTHING)
        if importance is not None and weights == "both":
            importance = (1 + importance / importance.mean()) / 2
        if name not in found:
            found[name] = _Accumulator(x.shape[-1], y.shape[-1], room)
        found[name].update(x, importance, sample, others)

    def loss(output: Tensor, _: Tensor | None) -> Tensor:
        return (output * model.task.readout(output, generator)).sum()

    watches = [Watch(name, partial(see, name), watched) for name in names]
    observe(model.module, watches, unlabelled(counted()), loss if gradients else None)
    _share(found, room)
    if idle := [name for name in names if name not in found]:
        raise InputError(
            f"{', '.join(idle)}: not computed for any image; take it out of the stage with skip"
        )
    return {name: found.pop(name).finish() for name in names}


def statistics(
    model: VitModel,
    layers: list[str],
    context: Context,
    weights: Weights = "even",
) -> dict[str, LayerStatistics]:
    """The statistics of `layers` over the calibration images, from the cache where it has them.

    The cache is keyed by the content of the model, of the images and by the seed.
    """
    identity = [model.fingerprint(), context.calibration_fingerprint, layers, weights, context.seed]
    if (known := context.cache.get(_CALIBRATION, identity)) is not None:
        return _unflatten({name: context.room(tensor) for name, tensor in known.items()})
    batches = (pixels.to(context.device) for pixels in context.calibration_batches("calibrating"))
    model = replace(model, module=placed(model.module, context.device))
    images = len(context.images)
    result = collect(model, layers, batches, images, context.seed, weights, context.room)
    context.cache.put(_CALIBRATION, identity, _flatten(result))
    return result


def _flatten(statistics: Mapping[str, LayerStatistics]) -> dict[str, Tensor]:
    return {
        f"{layer}/{field.name}": getattr(value, field.name)
        for layer, value in statistics.items()
        for field in fields(value)
    }


def _unflatten(found: Mapping[str, Tensor]) -> dict[str, LayerStatistics]:
    layers = list(dict.fromkeys(name.rpartition("/")[0] for name in sorted(found)))
    return {
        layer: LayerStatistics(
            **{f.name: found[f"{layer}/{f.name}"] for f in fields(LayerStatistics)}
        )
        for layer in layers
    }
