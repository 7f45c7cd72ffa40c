"""Latencies of attentions and MLPs of any sizes in a runtime, from a table measured here.

A branch is timed with its LayerNorm and its residual addition, at a few sizes; between these and
beyond, latencies follow straight lines. A table is of one processor and version of the runtime.
"""

import hashlib
import json
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
from vitcompress.model.architecture import VitModel
from vitcompress.model.sizes import AttentionSizes

_SHARES = (0.25, 0.625, 1.0)
_SECONDS = 0.2  # a size


@dataclass
class LatencyTable:
    """Measured milliseconds of one image on one thread: `grids` [sizes] or [sizes, sizes]."""

    grids: dict[str, list[Any]] = field(default_factory=dict)
    target: str = targets.DEFAULT

    @classmethod
    def load(cls, file: Path, target: str = targets.DEFAULT) -> "LatencyTable":
        return cls(json.loads(file.read_text(encoding="utf-8")), target)

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(self.grids), encoding="utf-8")

    def branch(
        self,
        width: int,
        entering: int,
        leaving: int,
        part: AttentionSizes | int | None,
        dense: int | None = None,
    ) -> float:
        """Milliseconds of a branch of an embedding of `width`; None takes none.

        `entering`, `leaving`: tokens before and after an attention; an MLP has those that leave.
        `dense`: the width for which the other sizes were made (None: the same).
        """
        dense = dense or width
        if part is None:
            return 0.0
        if isinstance(part, int):
            sizes = _grid(4 * dense)
            name = f"mlp {width} {leaving} {sizes}"
            if name not in self.grids:
                graphs = {str(n): _mlp(width, leaving, n) for n in sizes}
                self.grids[name] = list(
                    _milliseconds(graphs, (leaving, width), self.target).values()
                )
            return _between(part, sizes, self.grids[name])
        sizes = _grid(dense // part.heads)
        name = f"attention {width} {entering} {leaving} {part.heads} {sizes}"
        if name not in self.grids:
            graphs = {
                f"{a} {b}": _attention(width, entering, leaving, part.heads, a, b)
                for a, b in product(sizes, sizes)
            }
            found = list(_milliseconds(graphs, (entering, width), self.target).values())
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
                held = targets.load(self.target).session(file, 1)
                timed = time_in_turns({"whole": held}, pixels, _SECONDS)
            self.grids[name] = [timed["whole"].p50]
        return max(0.0, float(self.grids[name][0]) - branches)


def table_name(target: str = targets.DEFAULT) -> str:
    """The name of the file for the latencies of this machine."""
    runtime = targets.load(target)
    machine = f"{platform.processor()} {platform.node()} {runtime.name} {runtime.version}"
    key = hashlib.sha256(machine.encode()).hexdigest()[:16]
    return f"latency-{key}.json"


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
    runtime = targets.load(target)
    x = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    with TemporaryDirectory() as folder:
        sessions = {}
        for name, graph in graphs.items():
            file = Path(folder) / f"{name}.onnx"
            opsets = [helper.make_opsetid("", runtime.opset)]
            version = runtime.ir_version
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


def _attention(
    width: int, entering: int, leaving: int, heads: int, query_key: int, value: int
) -> onnx.GraphProto:
    graph = _Graph(width)
    widths = [heads * query_key, heads * query_key, heads * value]
    parts = graph.linear(graph.norm(), width, sum(widths))
    split = graph.constant(np.array(widths))
    q, k, v = graph.add("Split", [parts, split], 3, axis=-1)
    x = "x"
    if leaving < entering:
        q, x = graph.first(q, leaving), graph.first(x, leaving)
    mixed = graph.add("Attention", [q, k, v], q_num_heads=heads, kv_num_heads=heads)
    output = graph.add("Add", [x, graph.linear(mixed, widths[2], width)])
    return graph.finish(output, entering, leaving)
