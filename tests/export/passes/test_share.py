"""What is there twice is there once, but for the tensors of quantized layers."""

from collections.abc import Callable

import onnx_ir as ir

from vitcompress.export.passes import Source
from vitcompress.export.passes.outline import DOMAIN
from vitcompress.export.passes.share import share

GRAPH = """m (float[n, 2] x) => (float[n, 2] y)
<float[2] a = {1, 2}, float[2] b = {1, 2}, float[1, 2] other = {1, 2}> {
    first = Mul (x, a)
    second = Mul (x, b)
    both = Add (first, second)
    y = Mul (both, other)
}"""


def test_of_equal_constants_and_nodes_one_is_left(
    graph: Callable[[str], ir.Model], source: Callable[..., Source]
) -> None:
    model = graph(GRAPH)
    assert share(model, source()) == 2  # b, and the second product
    assert set(model.graph.initializers) == {"a", "other"}  # of another shape
    assert [node.op_type for node in model.graph] == ["Mul", "Add", "Mul"]


def test_layers_with_equal_scales_keep_their_own(
    graph: Callable[[str], ir.Model], source: Callable[..., Source]
) -> None:
    model = graph(GRAPH)
    held = model.graph.initializers
    for name in ("a", "b"):
        call = ir.Node(DOMAIN, "quantized_linear_0", [model.graph.inputs[0], held[name]], name=name)
        call.outputs[0].name = f"{name}.output"
        model.graph.append(call)
        model.graph.outputs.append(call.outputs[0])
    share(model, source())
    calls = [node for node in model.graph if node.domain == DOMAIN]
    assert [call.inputs[1].name for call in calls] == ["a", "b"]
