"""Of the shapes inside a graph only those are kept that the target has to be told."""

from collections.abc import Callable

import onnx
import onnx_ir as ir

from vitcompress.export.passes import Source
from vitcompress.export.passes.forget import forget

GRAPH = """m (float[n, 2] x) => (float[n, 2] y) <int64[1, 1] at = {0}> {
    rows = GatherND (x, at)
    negative = Neg (rows)
    y = Add (x, negative)
}"""


def test_only_the_shapes_that_are_wanted_stay(
    graph: Callable[[str], ir.Model], source: Callable[..., Source]
) -> None:
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(graph(GRAPH)))
    before = len(proto.graph.value_info)
    assert before > 1
    assert forget(proto.graph, source()) == before - 1
    assert [value.name for value in proto.graph.value_info] == ["rows"]
