"""ONNX functions: the nodes of a layer as one node, its body written once for all layers alike.

onnxruntime puts the bodies back in place when it loads a file, before it optimizes anything.
"""

from collections.abc import Container, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

DOMAIN = "vitcompress"


def outline(
    model: ir.Model, layers: Mapping[str, Sequence[ir.Node]], tensors: Container[str], name: str
) -> None:
    """Put one node, named as its layer, in the place of the nodes of each of `layers` (in place).

    Its inputs are what these nodes read of others, then the `tensors` that they read, by name;
    other initializers become constants of the body. Layers whose bodies are equal share a function:
    `name` and a number.
    """
    functions: dict[bytes, ir.Function] = {}
    for layer, nodes in layers.items():
        inside = set(nodes)
        read = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None)
        outer = [v for v in read if v.producer() not in inside and not v.is_initializer()]
        own = [v for v in read if v.is_initializer() and v.name in tensors]
        outputs = [v for node in nodes for v in node.outputs if _leaves(v, inside)]
        body = _body(nodes, [*outer, *own], outputs, model.opset_imports)
        function = functions.setdefault(
            ir.to_proto(body).SerializeToString(deterministic=True),
            ir.Function(DOMAIN, f"{name}_{len(functions)}", graph=body, attributes=()),
        )
        call = ir.Node(DOMAIN, function.name, [*outer, *own], num_outputs=len(outputs), name=layer)
        for old, new in zip(outputs, call.outputs, strict=True):
            new.type, new.shape, new.name, old.name = old.type, old.shape, old.name, None
        model.graph.insert_before(nodes[-1], call)
        ir.convenience.replace_all_uses_with(outputs, call.outputs, replace_graph_outputs=True)
        model.graph.remove(nodes, safe=True)
    model.functions.update((f.identifier(), f) for f in functions.values())
    if functions:
        model.opset_imports[DOMAIN] = 1
    RemoveUnusedNodesPass()(model)  # and the constants that only the layers read


def _leaves(value: ir.Value, inside: set[ir.Node]) -> bool:
    return value.is_graph_output() or any(user not in inside for user in value.consumers())


def _body(
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    opsets: Mapping[str, int],
) -> ir.Graph:
    """A copy of `nodes` with short names, so that equal layers have equal bodies."""
    copies = {value: ir.Value(name=f"x{place}") for place, value in enumerate(inputs)}
    made: list[ir.Node] = []
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in copies:  # a constant
                held = ir.node("Constant", [], {"value": value.const_value})
                copies[value] = held.outputs[0]
                made.append(held)
        twin = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else copies[value] for value in node.inputs],
            node.attributes.values(),
            num_outputs=len(node.outputs),
        )
        copies.update(zip(node.outputs, twin.outputs, strict=True))
        made.append(twin)
    for place, value in enumerate(v for node in made for v in node.outputs):
        value.name = f"v{place}"
    body = ir.Graph(
        [copies[value] for value in inputs],
        [copies[value] for value in outputs],
        nodes=made,
        opset_imports={"": opsets[""]},
    )
    for node in made:
        node.name = None  # given by the graph
    return body
