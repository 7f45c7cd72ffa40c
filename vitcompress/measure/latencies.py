"""Latencies of attentions, MLPs and quantized layers in a runtime, from a table measured here.

A branch is timed with its LayerNorm and its residual addition, at a few sizes; between these and
beyond, latencies follow straight lines. A table is of one processor and version of the runtime.
"""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx

from vitcompress import parallel, targets
from vitcompress.claims import scratch
from vitcompress.export.onnx import Part, export_onnx, export_parts
from vitcompress.measure.branches import Attention, Mlp, WindowedAttention
from vitcompress.measure.runtime import time_in_turns
from vitcompress.model.anatomy import SiteTokens
from vitcompress.model.architecture import VitModel
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.model.sizes import AttentionSizes
from vitcompress.terms import Activations

_SHARES = (0.25, 0.625, 1.0)
_SECONDS = 0.2  # a size


class QuantizedShape(NamedTuple):
    """Of a quantized layer: its input for one image, its outputs, its `activations`."""

    size: tuple[int, ...]
    outputs: int
    activations: Activations


class Extra(NamedTuple):
    """What a second term takes: of all tokens, or of the first ones alone."""

    first: float
    all: float


@dataclass
class LatencyTable:
    """Measured milliseconds of one image on one thread: `grids` [sizes] or [sizes, sizes]."""

    grids: dict[str, list[Any]] = field(default_factory=dict)
    target: str = targets.DEFAULT

    def mlp(self, width: int, tokens: int, hidden: int, dense: int) -> float:
        """Milliseconds of an MLP of `hidden` units on a stream of `width`.

        `dense`: the width for which it was made.
        """
        sizes = _grid(4 * dense)
        name = f"mlp {width} {tokens} {sizes}"
        if name not in self.grids:
            parts = {str(n): Part(Mlp(width, n), (tokens, width)) for n in sizes}
            self.grids[name] = list(_milliseconds(parts, self.target).values())
        return _between(hidden, sizes, self.grids[name])

    def attention(
        self, width: int, tokens: SiteTokens, part: AttentionSizes, dense: int, windowed: bool
    ) -> float:
        """Milliseconds of an attention on a stream of `width`; in windows, with a bias of logits.

        `dense`: the width for which it was made.
        """
        sizes = _grid(dense // part.heads)
        name = f"attention {width} {tokens.first} {tokens.last} {part.heads} {sizes}"
        if windowed:
            name += f" windows of {tokens.keys}"
        if name not in self.grids:
            branch = WindowedAttention if windowed else Attention
            coming = tokens.last if windowed else tokens.first

            def sized(query_key: int, value: int) -> Part:
                of = AttentionSizes(heads=part.heads, query_key=query_key, value=value)
                return Part(branch(width, tokens, of), (coming, width))

            parts = {f"{a} {b}": sized(a, b) for a, b in product(sizes, sizes)}
            found = list(_milliseconds(parts, self.target).values())
            self.grids[name] = np.array(found).reshape(len(sizes), -1).tolist()
        along = [_between(part.value, sizes, row) for row in self.grids[name]]
        return _between(part.query_key, sizes, along)

    def second_terms(
        self, shapes: Iterable[QuantizedShape], first: int
    ) -> dict[QuantizedShape, tuple[float, Extra]]:
        """Milliseconds of quantized layers of one term, and what a second one adds to them.

        `first`: how many tokens are the first ones. Of a layer that sees no others, both are equal.
        """
        wanted = {shape: f"terms {shape} {first}" for shape in shapes}
        parts = {
            f"{name} {number}": Part(layer, shape.size)
            for shape, name in wanted.items()
            if name not in self.grids
            for number, layer in enumerate(_of_terms(shape, first))
        }
        found = _milliseconds(parts, self.target) if parts else {}
        told = {}
        for shape, name in wanted.items():
            if name not in self.grids:
                self.grids[name] = [found[f"{name} {number}"] for number in range(3)]
            one, some, both = self.grids[name]
            told[shape] = one, Extra(max(some - one, 0.0), max(both - one, 0.0))
        return told

    def rest(self, model: VitModel, branches: float) -> float:
        """Milliseconds of all of `model` but its `branches`, which take as much as is given."""
        name = f"whole {model.architecture.model_dump_json()} {model.preprocess.input_size}"
        if name not in self.grids:
            self.grids[name] = [parallel.from_first(lambda: _whole(model, self.target))]
        return max(0.0, float(self.grids[name][0]) - branches)


def machine(target: str = targets.DEFAULT) -> str:
    """What latencies depend on besides the model: this processor and version of the runtime."""
    runtime = targets.load_target(target)
    return f"{platform.processor()} {platform.node()} {runtime.name} {runtime.version}"


def _between(size: int, sizes: Sequence[int], found: Sequence[float]) -> float:
    """Interpolated linearly; beyond the largest of `sizes`, along the last two."""
    beyond = size - sizes[-1]
    if beyond > 0 and len(sizes) > 1:
        return found[-1] + beyond * (found[-1] - found[-2]) / (sizes[-1] - sizes[-2])
    return float(np.interp(size, sizes, found))


def _grid(full: int) -> list[int]:
    return sorted({max(1, round(share * full)) for share in _SHARES})


def _whole(model: VitModel, target: str) -> float:
    """The median milliseconds of `model`."""
    with scratch() as folder:
        file = folder / "whole.onnx"
        export_onnx(model, file, {}, target)
        size = (1, model.preprocess.channels, *model.preprocess.input_size)
        held = targets.load_target(target).session(file, 1)
        return time_in_turns({"whole": held}, np.zeros(size, np.float32), _SECONDS)["whole"].p50


def _milliseconds(parts: Mapping[str, Part], target: str) -> dict[str, float]:
    """The median of each of `parts`, as the first process measures it."""
    return parallel.from_first(lambda: _timed(parts, target))


def _timed(parts: Mapping[str, Part], target: str) -> dict[str, float]:
    """The median of each of `parts`, those of one size run in turns on the same input."""
    runtime, found = targets.load_target(target), dict[str, float]()
    with scratch() as folder:
        sessions: dict[tuple[int, ...], dict[str, targets.Session]] = {}
        for number, (name, model) in enumerate(export_parts(parts, target).items()):
            file = folder / f"{number}.onnx"
            onnx.save(model, file)
            sessions.setdefault(parts[name].size, {})[name] = runtime.session(file, 1)
        for size, alike in sessions.items():
            x = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
            timed = time_in_turns(alike, x, _SECONDS)
            found |= {name: timing.p50 for name, timing in timed.items()}
    return {name: found[name] for name in parts}


def _of_terms(shape: QuantizedShape, first: int) -> Iterator[QuantizedLinear]:
    """Layers of one term, of a second one of the first tokens, and of all."""
    some = first if len(shape.size) > 1 and first < shape.size[-2] else None
    kinds: tuple[tuple[Literal[1, 2], int | None], ...] = (1, None), (2, some), (2, None)
    for terms, tokens in kinds:
        yield QuantizedLinear(shape.size[-1], shape.outputs, 8, shape.activations, terms, tokens)
