"""Shapes that a runtime infers need not be written."""

import onnx

from vitcompress.export.passes import Source


def forget(graph: onnx.GraphProto, source: Source) -> int:
    """Only the shapes that the target has to be told are kept, beside those of the file's ends.

    The one pass over the message that is written: a model in memory always knows its shapes.
    """
    kept = source.target.shapes_kept
    wanted = {name for node in graph.node if node.op_type in kept for name in node.output}
    left = [value for value in graph.value_info if value.name in wanted]
    forgotten = len(graph.value_info) - len(left)
    del graph.value_info[:]
    graph.value_info.extend(left)
    return forgotten
