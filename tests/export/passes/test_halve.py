"""What is computed in float16, and what stays float32."""

from collections.abc import Callable
from dataclasses import replace

import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from vitcompress.errors import InputError
from vitcompress.export.passes import Source
from vitcompress.export.passes.halve import halve

Graph = Callable[[str], ir.Model]
HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
GRAPH = """m (float[n, 4] x) => (float[n, 4] y)
<float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1},
 float[4] s = {1,1,1,1}, int64[1] axes = {1}> {
    table = Exp (w)
    first = MatMul (x, table)
    normed = LayerNormalization (first, s)
    second = MatMul (normed, w)
    squares = Mul (second, second)
    sum = ReduceSum (squares, axes)
    length = Sqrt (sum)
    unit = Div (second, length)
    third = Add (unit, second)
    y = Tanh (third)
}"""


def typed(graph: Graph, text: str) -> ir.Model:
    """A graph whose values know their types, as those that are traced do."""
    model = graph(text)
    ShapeInferencePass()(model)
    return model


def checked(model: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_norms_what_makes_them_and_constants_stay_float32(
    graph: Graph, source: Callable[..., Source]
) -> None:
    model = typed(graph, GRAPH)
    assert halve(model, replace(source(), floats="float16")) == 4
    types = {n.op_type: n.outputs[0].dtype for n in model.graph if n.op_type != "Cast"}
    assert {name for name, kind in types.items() if kind == HALF} == {"MatMul", "Add", "Tanh"}
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {FLOAT}
    assert model.graph.outputs[0].name == "y"
    held = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert held == {"w": FLOAT, "w.float16": HALF, "s": FLOAT, "axes": ir.DataType.INT64}
    checked(model)


def test_attention_has_its_softmax_in_float32(graph: Graph, source: Callable[..., Source]) -> None:
    line = "y = Attention <q_num_heads = 1, kv_num_heads = 1> (x, x, x)"
    model = typed(graph, f"m (float[1, 3, 4] x) => (float[1, 3, 4] y) {{ {line} }}")
    assert halve(model, replace(source(), floats="float16")) == 1
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    assert attention.attributes.get_int("softmax_precision") == onnx.TensorProto.FLOAT
    checked(model)


def test_what_is_stored_in_float16_is_read_without_a_cast(
    graph: Graph, source: Callable[..., Source]
) -> None:
    text = """m (float[n, 2] x) => (float[n, 2] y) <float16[2] held = {1, 2}> {
        wide = Cast <to = 1> (held)
        y = Add (x, wide)
    }"""
    model = typed(graph, text)
    halve(model, replace(source(), floats="float16"))
    (add,) = (node for node in model.graph if node.op_type == "Add")
    assert add.inputs[1] is model.graph.initializers["held"]
    checked(model)


def test_nothing_changes_unless_it_is_asked_for(
    graph: Graph, source: Callable[..., Source]
) -> None:
    for floats in ("float32", "float16_weights"):
        model = typed(graph, GRAPH)
        assert halve(model, replace(source(), floats=floats)) == 0
        assert {v.dtype for n in model.graph for v in n.outputs} == {FLOAT}


def test_a_constant_beyond_float16_is_named(graph: Graph, source: Callable[..., Source]) -> None:
    text = "m (float[n, 2] x) => (float[n, 2] y) <float[2] far = {1, -70000}> { y = Add (x, far) }"
    with pytest.raises(InputError, match=r"export\.floats: far holds -70000, and .* 65504"):
        halve(typed(graph, text), replace(source(), floats="float16"))
