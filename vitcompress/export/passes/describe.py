"""What a file says of itself, and what it does not."""

from importlib.metadata import version

import onnx_ir as ir

from vitcompress.export.passes import Source

METADATA_PREFIX = "vitcompress."


def describe(model: ir.Model, source: Source) -> int:
    """The metadata are the facts of the source alone: nothing tells where it was traced."""
    graph, cleared = model.graph, 0
    for node in graph.all_nodes():
        cleared += bool(node.metadata_props or node.doc_string)
        node.metadata_props.clear()
        node.doc_string = None
    model.metadata_props.clear()
    graph.metadata_props.clear()
    model.producer_name, model.producer_version = "vitcompress", version("vitcompress")
    model.metadata_props.update(
        {METADATA_PREFIX + key: value for key, value in source.facts.items()}
    )
    return cleared
