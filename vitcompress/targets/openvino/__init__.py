"""OpenVINO on a CPU: the operators of `portable`, checked and timed there.

Pairs of QuantizeLinear and DequantizeLinear become 8-bit products, and packed weights are unpacked
once, when a file is loaded. What stays float is computed as OpenVINO likes it best, in bfloat16
where the processor has that; parity is checked in float32.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from vitcompress.errors import InputError
from vitcompress.methods import quantizer
from vitcompress.targets import OperatorTable, Session
from vitcompress.targets.portable import TARGET as PORTABLE

if TYPE_CHECKING:
    from vitcompress.model.architecture import QuantizedLayer

# Two products of an unsigned code with a weight of this size fit in 16 bits, signed.
_UNSATURATED = 64


@dataclass(frozen=True)
class OpenVino:
    """`Target` for OpenVINO's CPU plugin."""

    name: str = "openvino"
    requirement: str = "openvino>=2026.4"
    opset: int = PORTABLE.opset
    ir_version: int = PORTABLE.ir_version
    functions: bool = False
    shapes_kept: frozenset[str] = frozenset()

    @property
    def version(self) -> str | None:
        try:
            return metadata.version("openvino")
        except metadata.PackageNotFoundError:
            return None

    def operators(self) -> OperatorTable:
        return PORTABLE.operators()

    def check_layers(self, layers: Mapping[str, "QuantizedLayer"]) -> None:
        for name, layer in layers.items():
            if layer.activations == "dynamic":
                raise InputError(
                    f"export.target: openvino multiplies {name} in floats where ranges are taken "
                    "at run time; give the quantize stage activations: static"
                )
            if _largest(layer) > _UNSATURATED and _saturates():
                remedy = "bits: 7" if layer.group is None else "group: null"
                raise InputError(
                    f"export.target: openvino adds pairs of 8-bit products in 16 bits on this "
                    f"processor, and weights of {layer.bits} bits saturate ({name}); give the "
                    f"quantize stage {remedy}"
                )

    def session(self, path: Path, threads: int, exact: bool = False) -> Session:
        from vitcompress.targets.openvino import runtime

        return runtime.load_session(path, threads, exact)

    def kernels(self, path: Path, scales: Collection[str]) -> dict[str, int]:
        from vitcompress.targets.openvino import runtime

        return runtime.kernels(path, scales)


def _saturates() -> bool:
    from vitcompress.targets.openvino import runtime

    return runtime.saturates()


def _largest(layer: "QuantizedLayer") -> int:
    """The largest magnitude that a whole weight of a layer can have."""
    code = max(map(abs, quantizer.weight_range(layer.bits)))
    return code if layer.group is None else code * quantizer.largest_multiplier(layer.bits)


TARGET = OpenVino()
