"""Nodes that need no image are computed; packed codes stay packed."""

from collections.abc import Callable

import onnx_ir as ir

from vitcompress.export.passes import Source
from vitcompress.export.passes.fold import fold

GRAPH = """m (float[n, 2] x) => (float[n, 2] y) <float[2] w = {1, 2}, uint8[32] codes = {%s}> {
    two = Constant <value = float[1] {2.0}> ()
    twice = Mul (w, two)
    floats = Cast <to = 1> (codes)
    all = ReduceSum <keepdims = 0> (floats)
    scaled = Mul (x, twice)
    y = Add (scaled, all)
}""" % ", ".join("1" * 32)  # noqa: UP031


def test_small_constants_are_computed_and_large_ones_left(
    graph: Callable[[str], ir.Model], source: Callable[..., Source]
) -> None:
    model = graph(GRAPH)
    assert fold(model, source()) == 2
    assert [node.op_type for node in model.graph] == ["Cast", "ReduceSum", "Mul", "Add"]
    held = [value.const_value.numpy().tolist() for value in model.graph.initializers.values()]
    assert [2.0, 4.0] in held
    assert [1] * 32 in held
