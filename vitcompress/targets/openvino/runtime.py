"""What OpenVINO makes of files. Imported only where OpenVINO is installed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import openvino
from onnx import TensorProto, helper, numpy_helper

from vitcompress.errors import InputError
from vitcompress.targets.openvino.products import products

_DEVICE = "CPU"
_PROBED = 64  # rows, columns and inputs of a product that is tried


@dataclass(frozen=True)
class OvSession:
    """`Session` in OpenVINO."""

    held: openvino.CompiledModel

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(size.get_length() for size in list(self.held.inputs[0].partial_shape)[1:])

    @property
    def output_shape(self) -> tuple[int | str, ...]:
        sizes = self.held.outputs[0].partial_shape
        return tuple(str(size) if size.is_dynamic else size.get_length() for size in sizes)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        output: np.ndarray = self.held(pixels)[0]
        return output

    def values(self, pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        found = self.held(pixels)
        return [found[name] for name in names]


def load_session(path: Path, threads: int, exact: bool) -> OvSession:
    """A session as OpenVINO sets it up for single requests; `exact`: float32 wherever floats are.

    Threads are not bound to cores, where sessions that take turns would meet other programs.
    """
    options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    if exact:
        options["INFERENCE_PRECISION_HINT"] = "f32"
    core = openvino.Core()
    try:
        return OvSession(core.compile_model(core.read_model(path), _DEVICE, options))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: openvino cannot load it: {reason}") from error


def kernels(path: Path, scales: Collection[str]) -> dict[str, int]:
    """`Target.kernels`: products whose implementation is one of 8 bits."""
    compiled = load_session(path, 1, exact=False).held
    held = list[str]()
    for kernel in compiled.get_runtime_model().get_ops():
        facts = kernel.get_rt_info()
        if facts["primitiveType"].astype(str).lower().endswith("_i8"):
            held += facts["originalLayersNames"].astype(str).split(",")
    return products(path, held, scales)


@cache
def saturates() -> bool:
    """Whether 8-bit products are wrong on this processor where they are large: tried, not guessed.

    Kernels of processors without VNNI add pairs of products in 16 bits.
    """
    size, code, weight = _PROBED, 255, 127
    scales, zero = np.ones(size, np.float32), np.zeros(size, np.int8)
    held: dict[str, np.ndarray] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "weight": np.full((size, size), weight, np.int8),
        "scales": scales,
        "zeros": zero,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "one", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["whole"], axis=1),
        helper.make_node("MatMul", ["rounded", "whole"], ["sums"]),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [size, size]) for n in ("x", "sums")
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(proto.SerializeToString()), _DEVICE)
    sums = compiled(np.full((size, size), code, np.float32))[0]
    return bool((sums != code * weight * size).any())
