"""Tensors that are stored in fewer bits are cast when they are loaded."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from vitcompress.export.passes import Source
from vitcompress.export.passes.narrow import narrow

GRAPH = """m (float[n, 2] x) => (float[n, 2] y)
<float[2] half = {1, 0.5}, float[2, 2] coded = {127, -127, 1, -1}, float[2] kept = {1, 2}> {
    first = Add (x, half)
    second = MatMul (first, coded)
    y = Add (second, kept)
}"""


def test_halves_and_codes_are_cast_to_the_names_they_had(
    graph: Callable[[str], ir.Model], source: Callable[..., Source]
) -> None:
    model = graph(GRAPH)
    told = source(half=("half", "not.read"), coded=("coded",))
    assert narrow(model, told) == 2
    held = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert {name: array.dtype for name, array in held.items()} == {
        "kept": np.float32,
        "half.float16": np.float16,
        "coded.int8": np.int8,
        "coded.scale": np.float32,
    }
    assert held["half.float16"].tolist() == [1, 0.5]
    assert np.allclose(held["coded.int8"] * held["coded.scale"], [[127, -127], [1, -1]], rtol=1e-4)
    made = {output.name for node in model.graph for output in node.outputs}
    assert {"half", "coded"} <= made
    assert narrow(model, source()) == 0
