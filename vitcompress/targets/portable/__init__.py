"""Any runtime that reads ONNX: operators of opset 17 and no functions, checked in onnxruntime.

Quantized layers are pairs of QuantizeLinear and DequantizeLinear around a MatMul, which runtimes
make integer kernels of.
"""

from dataclasses import dataclass

from vitcompress.targets import OperatorTable
from vitcompress.targets.onnxruntime import OnnxRuntime


@dataclass(frozen=True)
class Portable(OnnxRuntime):
    """`Target` for runtimes that know less than onnxruntime does."""

    name: str = "portable"
    requirement: str = "onnxruntime>=1.17"
    opset: int = 17
    ir_version: int = 8
    shapes_kept: frozenset[str] = frozenset()
    functions: bool = False

    def operators(self) -> OperatorTable:
        from vitcompress.targets.portable.operators import TABLE  # brings torch

        return TABLE


TARGET = Portable()
