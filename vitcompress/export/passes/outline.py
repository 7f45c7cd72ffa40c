"""Each quantized layer as one node: the call of a function, its body written once for all alike.

Runtimes put the bodies back in place when they load a file, before they optimize anything.
"""

import ast
from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitcompress.export.passes import Source

DOMAIN = "vitcompress"
_OPERATOR = "quantized_linear"
_SCOPES = "pkg.torch.onnx.name_scopes"


def outline(model: ir.Model, source: Source) -> int:
    """Each quantized layer is one node of its name, that reads float inputs and its own tensors.

    Its inputs are what the layer's nodes read of others, then the layer's tensors; other
    initializers become constants of the body.
    """
    functions: dict[bytes, ir.Function] = {}
    layers = _quantized_layers(model.graph)
    for layer, nodes in layers.items():
        inside = set(nodes)
        read = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None)
        outer = [v for v in read if v.producer() not in inside and not v.is_initializer()]
        own = [v for v in read if v.is_initializer() and v.name in source.tensors]
        outputs = [v for node in nodes for v in node.outputs if _leaves(v, inside)]
        body = _body(nodes, [*outer, *own], outputs, model.opset_imports)
        function = functions.setdefault(
            ir.to_proto(body).SerializeToString(deterministic=True),
            ir.Function(DOMAIN, f"{_OPERATOR}_{len(functions)}", graph=body, attributes=()),
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
    return len(layers)


def _quantized_layers(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """The nodes of each quantized layer, those that unpack its weights included.

    A layer that is called more than once has a name for each call: NAME, NAME@1, …
    """
    by_scope: dict[str, list[ir.Node]] = {}
    quantized: dict[str, None] = {}
    for node in graph:
        scopes: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
        scope, operator = ["", *scopes][-2:]
        by_scope.setdefault(scope, []).append(node)
        if operator.startswith(_OPERATOR):
            quantized[scope] = None
    return {name: by_scope[name] for name in quantized}


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
    constants: dict[tuple[str, bytes], ir.Value] = {}
    made: list[ir.Node] = []
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in copies:
                assert value.const_value is not None
                array = value.const_value.numpy()
                key = f"{array.dtype} {array.shape}", array.tobytes()
                if key not in constants:
                    held = ir.node("Constant", [], {"value": ir.tensor(array)})
                    constants[key] = held.outputs[0]
                    made.append(held)
                copies[value] = constants[key]
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
