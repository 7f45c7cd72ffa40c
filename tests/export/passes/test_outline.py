"""Each quantized layer is one node, and what is alike is written once."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from vitcompress.export.passes import Source
from vitcompress.export.passes.outline import DOMAIN, outline

GRAPH = """m (float[n, 2] x) => (float[n, 2] y)
<float[2] first_scale = {1, 2}, float[2] second_scale = {1, 2}, float one = {1}, float uno = {1}> {
    a = Mul (x, first_scale)
    b = Add (a, one)
    c = Mul (b, second_scale)
    y = Add (c, uno)
}"""


@pytest.fixture
def traced(graph: Callable[[str], ir.Model]) -> ir.Model:
    """Two layers, each with a constant of its own, both of one value."""
    model = graph(GRAPH)
    for node, layer in zip(model.graph, ["first", "first", "second", "second"], strict=True):
        scopes = f"['', '{layer}', 'quantized_linear']"
        node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    return model


def test_layers_that_are_alike_call_one_function(
    traced: ir.Model, source: Callable[..., Source]
) -> None:
    assert outline(traced, source(tensors=["first_scale", "second_scale"])) == 2
    calls = list(traced.graph)
    assert [call.name for call in calls] == ["first", "second"]
    assert {call.domain for call in calls} == {DOMAIN}
    assert [[value.name for value in call.inputs][1:] for call in calls] == [
        ["first_scale"],
        ["second_scale"],
    ]
    (function,) = traced.functions.values()
    assert [node.op_type for node in function] == ["Mul", "Constant", "Add"]
    assert set(traced.graph.initializers) == {"first_scale", "second_scale"}
    assert DOMAIN in traced.opset_imports


def test_another_constant_is_another_function(
    traced: ir.Model, source: Callable[..., Source]
) -> None:
    other = ir.Value(name="two", const_value=ir.tensor([2.0], name="two"))
    traced.graph.initializers["two"] = other
    traced.graph[3].replace_input_with(1, other)
    assert outline(traced, source(tensors=["first_scale", "second_scale"])) == 2
    assert len(traced.functions) == 2


def test_a_graph_without_quantized_layers_stays_as_it_is(
    graph: Callable[[str], ir.Model], source: Callable[..., Source]
) -> None:
    model = graph(GRAPH)
    assert outline(model, source()) == 0
    assert len(model.graph) == 4
    assert DOMAIN not in model.opset_imports
