"""A file says what it was told to say, and nothing of where it was made."""

from collections.abc import Callable

import onnx_ir as ir

from vitcompress.export.passes import Source
from vitcompress.export.passes.describe import describe

GRAPH = "m (float[n] x) => (float[n] y) { z = Neg (x)  y = Neg (z) }"


def test_the_facts_take_the_place_of_all_other_metadata(
    graph: Callable[[str], ir.Model], source: Callable[..., Source]
) -> None:
    model = graph(GRAPH)
    model.graph[0].metadata_props["stack_trace"] = "/home/me/secret.py"
    model.graph.metadata_props["at"] = model.metadata_props["by"] = "me"
    assert describe(model, source(facts={"seed": "3"})) == 1
    assert not any(node.metadata_props for node in model.graph)
    assert not model.graph.metadata_props
    assert model.metadata_props == {"vitcompress.seed": "3"}
    assert model.producer_name == "vitcompress"
