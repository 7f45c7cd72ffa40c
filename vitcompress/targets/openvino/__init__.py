"""OpenVINO on a CPU: the operators of `portable`, checked and timed there.

Pairs of QuantizeLinear and DequantizeLinear become 8-bit products, and packed weights are unpacked
once, when a file is loaded. What stays float is computed as OpenVINO likes it best, in bfloat16
where the processor has that; parity is checked in float32.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from vitcompress.errors import InputError
from vitcompress.targets import OperatorTable, Session
from vitcompress.targets._saturation import check_weights
from vitcompress.targets.portable import TARGET as PORTABLE

if TYPE_CHECKING:
    from vitcompress.model.architecture import QuantizedLayer


# As small, and products in floats.
_FASTER = "give the quantize stage activations: float"


def _installed() -> str | None:
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class OpenVino:
    """`Target` for OpenVINO's CPU plugin."""

    name: str = "openvino"
    requirement: str = "openvino>=2026.4"
    version: str | None = field(default_factory=_installed)
    opset: int = PORTABLE.opset
    ir_version: int = PORTABLE.ir_version
    functions: bool = False
    shapes_kept: frozenset[str] = frozenset()

    def operators(self) -> OperatorTable:
        return PORTABLE.operators()

    def check_layers(self, layers: Mapping[str, "QuantizedLayer"]) -> None:
        for name, layer in layers.items():
            if layer.activations == "dynamic":
                raise InputError(
                    f"export.target: openvino multiplies {name} in floats where ranges are taken "
                    "at run time; give the quantize stage activations: static"
                )
        if _saturates():
            check_weights(layers, self.name, f"{_FASTER}, or ")

    def advice(self, layers: Mapping[str, "QuantizedLayer"]) -> str | None:
        if _saturates() and any(layer.activations != "float" for layer in layers.values()):
            return (
                "OpenVINO multiplies 8-bit integers slower than floats on this processor, which "
                f"lacks VNNI; {_FASTER}"
            )
        return None

    def session(self, path: Path, threads: int, exact: bool = False) -> Session:
        from vitcompress.targets.openvino import runtime

        return runtime.load_session(path, threads, exact)

    def kernels(self, path: Path, scales: Collection[str]) -> dict[str, int]:
        from vitcompress.targets.openvino import runtime

        return runtime.kernels(path, scales)


def _saturates() -> bool:
    from vitcompress.targets.openvino import runtime

    return runtime.saturates()


TARGET = OpenVino()
