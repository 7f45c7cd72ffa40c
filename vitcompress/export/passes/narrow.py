"""Tensors that are stored in fewer bits than they are computed in."""

import numpy as np
import onnx_ir as ir
import torch

from vitcompress.export.passes import Source
from vitcompress.methods import quantizer
from vitcompress.model.architecture import SCALE, stored_in_half


def narrow(model: ir.Model, source: Source) -> int:
    """Initializers are float16 or 8-bit codes where the architecture says so, cast when loaded."""
    graph, changed = model.graph, 0
    for name in (*stored_in_half(source.architecture), *source.architecture.coded):
        value = graph.initializers.get(name)
        if value is None or value.const_value is None:
            continue  # a tensor that this graph does not read
        floats = value.const_value.numpy()
        if name in source.architecture.coded:
            codes, scale = quantizer.byte_codes(torch.from_numpy(floats.copy()))
            held = _initializer(graph, f"{name}.int8", codes.numpy())
            cast = ir.node("Cast", [held], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
            factor = _initializer(graph, name + SCALE, scale.numpy())
            nodes = [cast, ir.node("Mul", [cast.outputs[0], factor], name=f"{name}/Mul")]
        else:
            held = _initializer(graph, f"{name}.float16", floats.astype("float16"))
            nodes = [ir.node("Cast", [held], {"to": ir.DataType.FLOAT})]
        nodes[-1].outputs[0].dtype, nodes[-1].outputs[0].shape = ir.DataType.FLOAT, value.shape
        value.replace_all_uses_with(nodes[-1].outputs[0])
        del graph.initializers[name]
        nodes[-1].outputs[0].name = name
        graph.insert_before(graph[0], nodes)
        changed += 1
    return changed


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.initializers[name] = value
    return value
