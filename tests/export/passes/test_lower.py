"""Operators are written in the versions that the target knows, or refused by name."""

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir
import pytest

from vitcompress.errors import RunError
from vitcompress.export.passes import Source
from vitcompress.export.passes.lower import lower
from vitcompress.targets.portable import TARGET

GRAPH = """m (float[n, 4] x) => (float[n, 2] y) <int64[1] axes = {1}> {
    one, other = Split <axis = 1, num_outputs = 2> (x)
    mean = ReduceMean <keepdims = 1, noop_with_empty_axes = 0> (other, axes)
    y = Add (one, mean)
}"""


def test_sizes_and_axes_are_those_of_earlier_operators(
    graph: Callable[[str], ir.Model], source: Callable[..., Source]
) -> None:
    model = graph(GRAPH)
    assert lower(model, replace(source(), target=TARGET)) == 2
    split, mean, _ = model.graph
    assert "num_outputs" not in split.attributes
    assert mean.attributes.get_ints("axes") == (1,)
    assert len(mean.inputs) == 1
    assert model.opset_imports[""] == 17
    ir.to_proto(model)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("y = Gelu (x)", id="a newer operator"),
        pytest.param("y, z = Split <axis = 1, num_outputs = 2> (x)", id="parts that are not equal"),
    ],
)
def test_what_the_opset_lacks_is_refused(
    line: str, graph: Callable[[str], ir.Model], source: Callable[..., Source]
) -> None:
    model = graph(f"m (float[n, 3] x) => (float[n, k] y) {{ {line} }}")
    with pytest.raises(RunError, match=f"{model.graph[0].op_type}, of opset .*portable.*opset 17"):
        lower(model, replace(source(), target=TARGET))


def test_a_target_that_knows_all_gets_all(
    graph: Callable[[str], ir.Model], source: Callable[..., Source]
) -> None:
    model = graph(GRAPH)
    assert lower(model, source()) == 0
    assert "num_outputs" in model.graph[0].attributes
