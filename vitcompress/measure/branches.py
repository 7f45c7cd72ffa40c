"""Latencies of attentions and MLPs of any sizes in a runtime, from a table measured here.

A branch is timed with its LayerNorm and its residual addition, at a few sizes; between these and
beyond, latencies follow straight lines. A table is of one processor and version of the runtime.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitcompress import targets
from vitcompress.export.onnx import export_onnx
from vitcompress.measure.runtime import time_in_turns
from vitcompress.model.anatomy import SiteTokens
from vitcompress.model.architecture import VitModel
from vitcompress.model.sizes import AttentionSizes

_SHARES = (0.25, 0.625, 1.0)
_SECONDS = 0.2  # a size


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
            graphs = {str(n): _mlp(width, tokens, n) for n in sizes}
            self.grids[name] = list(_milliseconds(graphs, (tokens, width), self.target).values())
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
            graph = _windowed if windowed else _attention
            graphs = {
                f"{a} {b}": graph(
                    width, tokens, part.model_copy(update={"query_key": a, "value": b})
                )
                for a, b in product(sizes, sizes)
            }
            coming = tokens.last if windowed else tokens.first
            found = list(_milliseconds(graphs, (coming, width), self.target).values())
            self.grids[name] = np.array(found).reshape(len(sizes), -1).tolist()
        along = [_between(part.value, sizes, row) for row in self.grids[name]]
        return _between(part.query_key, sizes, along)

    def rest(self, model: VitModel, branches: float) -> float:
        """Milliseconds of all of `model` but its `branches`, which take as much as is given."""
        name = f"whole {model.architecture.model_dump_json()} {model.preprocess.input_size}"
        if name not in self.grids:
            size = (1, model.preprocess.channels, *model.preprocess.input_size)
            with TemporaryDirectory() as folder:
                file = Path(folder) / "whole.onnx"
                export_onnx(model, file, {}, self.target)
                pixels = np.zeros(size, np.float32)
                held = targets.load_target(self.target).session(file, 1)
                timed = time_in_turns({"whole": held}, pixels, _SECONDS)
            self.grids[name] = [timed["whole"].p50]
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


def _milliseconds(
    graphs: Mapping[str, onnx.GraphProto], shape: tuple[int, int], target: str
) -> dict[str, float]:
    """The median of each of `graphs`, run in turns on one input of `shape`."""
    runtime, usual = targets.load_target(target), targets.load_target(targets.DEFAULT)
    # Of the usual operators for each target: what counts is how time grows with what is computed.
    opsets, version = [helper.make_opsetid("", usual.opset)], usual.ir_version
    x = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    with TemporaryDirectory() as folder:
        sessions = {}
        for name, graph in graphs.items():
            file = Path(folder) / f"{name}.onnx"
            onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=version), file)
            sessions[name] = runtime.session(file, 1)
        timed = time_in_turns(sessions, x, _SECONDS)
    return {name: timing.p50 for name, timing in timed.items()}


class _Graph:
    """A chain of nodes under construction."""

    def __init__(self, width: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)
        self.width = width

    def add(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        names = [f"v{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        weight = self.random.normal(size=(inputs, outputs)).astype(np.float32) / inputs**0.5
        product = self.add("MatMul", [x, self.constant(weight)])
        return str(self.add("Add", [product, self.constant(np.zeros(outputs, np.float32))]))

    def qkv(self, x: str, sizes: AttentionSizes) -> Any:
        parts = self.linear(x, self.width, sum(sizes.widths))
        return self.add("Split", [parts, self.constant(np.array(sizes.widths))], 3, axis=-1)

    def norm(self) -> str:
        scale, bias = np.ones(self.width, np.float32), np.zeros(self.width, np.float32)
        inputs = ["x", self.constant(scale), self.constant(bias)]
        return str(self.add("LayerNormalization", inputs))

    def first(self, x: str, tokens: int) -> str:
        bounds = [self.constant(np.array([n])) for n in (0, tokens, 1)]
        return str(self.add("Slice", [x, *bounds]))

    def finish(self, output: str, entering: int, leaving: int) -> onnx.GraphProto:
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, tokens, self.width])
            for name, tokens in (("x", entering), (output, leaving))
        ]
        return helper.make_graph(self.nodes, "branch", ends[:1], ends[1:], self.constants)


def _mlp(width: int, tokens: int, hidden: int) -> onnx.GraphProto:
    graph = _Graph(width)
    inner = graph.add("Gelu", [graph.linear(graph.norm(), width, hidden)])
    output = graph.add("Add", ["x", graph.linear(inner, hidden, width)])
    return graph.finish(output, tokens, tokens)


def _attention(width: int, tokens: SiteTokens, sizes: AttentionSizes) -> onnx.GraphProto:
    graph = _Graph(width)
    q, k, v = graph.qkv(graph.norm(), sizes)
    x = "x"
    if tokens.last < tokens.first:
        q, x = graph.first(q, tokens.last), graph.first(x, tokens.last)
    heads = sizes.heads
    mixed = graph.add("Attention", [q, k, v], q_num_heads=heads, kv_num_heads=heads)
    output = graph.add("Add", [x, graph.linear(mixed, sizes.widths[2], width)])
    return graph.finish(output, tokens.first, tokens.last)


def _windowed(width: int, tokens: SiteTokens, sizes: AttentionSizes) -> onnx.GraphProto:
    """Windows as heads, as `model.modules.windows` computes them."""
    graph, size = _Graph(width), tokens.keys
    count = tokens.first // size
    heads = count * sizes.heads
    order = np.arange(tokens.first) % tokens.last
    parted = graph.add("Gather", [graph.norm(), graph.constant(order)], axis=1)
    as_heads = graph.constant(np.array([0, size, -1]))
    q, k, v = (graph.add("Reshape", [t, as_heads]) for t in graph.qkv(parted, sizes))
    bias = graph.constant(np.zeros((1, heads, size, size), np.float32))
    mixed = graph.add("Attention", [q, k, v, bias], q_num_heads=heads, kv_num_heads=heads)
    whole = graph.constant(np.array([0, tokens.first, -1]))
    inverse = graph.constant(np.arange(tokens.last))
    joined = graph.add("Gather", [graph.add("Reshape", [mixed, whole]), inverse], axis=1)
    output = graph.add("Add", ["x", graph.linear(joined, sizes.widths[2], width)])
    return graph.finish(output, tokens.last, tokens.last)
