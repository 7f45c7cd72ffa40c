"""onnxruntime on a CPU.

1.23 is the first that has opset 23, but not its QuantizeLinear; so files with quantized layers need
1.24.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
from packaging.version import Version

from vitcompress import processor
from vitcompress.claims import scratch
from vitcompress.errors import InputError
from vitcompress.targets import OperatorTable
from vitcompress.targets._saturation import check_weights

if TYPE_CHECKING:
    from vitcompress.model.architecture import QuantizedLayer

PRECISE = "session.x64quantprecision", "1"
# Before, it changes nothing for kernels with a scale, and pairs of QuantizeLinear and
# DequantizeLinear end the process.
_PRECISE_SINCE = Version("1.30")
# The input of a fused kernel that is the scale of its weights.
_SCALE_INPUT = {"MatMulIntegerToFloat": 3, "DynamicQuantizeMatMul": 2}


@dataclass(frozen=True)
class OrtSession:
    """`Session` in onnxruntime."""

    held: ort.InferenceSession

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.held.get_inputs()[0].shape[1:])

    @property
    def output_shape(self) -> tuple[int | str, ...]:
        return tuple(self.held.get_outputs()[0].shape)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        output: np.ndarray = self.held.run(None, self._feed(pixels))[0]
        return output

    def values(self, pixels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        return list(self.held.run(list(names), self._feed(pixels)))

    def _feed(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {self.held.get_inputs()[0].name: pixels}


@dataclass(frozen=True)
class OnnxRuntime:
    """`Target` for onnxruntime's CPU kernels."""

    name: str = "onnxruntime"
    requirement: str = "onnxruntime>=1.24"
    version: str = str(ort.__version__)
    opset: int = 23
    ir_version: int = 11
    functions: bool = True
    shapes_kept: frozenset[str] = frozenset({"GatherND"})  # else it does not fuse what follows

    def operators(self) -> OperatorTable:
        from vitcompress.targets.onnxruntime.operators import TABLE  # brings torch

        return TABLE

    def check_layers(self, layers: Mapping[str, "QuantizedLayer"]) -> None:
        if _saturates() and not _precise(self.version):
            check_weights(
                layers,
                f"onnxruntime {self.version}",
                f"pip install 'onnxruntime>={_PRECISE_SINCE}', or ",
            )

    def advice(self, layers: Mapping[str, "QuantizedLayer"]) -> str | None:
        return None

    def session(self, path: Path, threads: int, exact: bool = False) -> OrtSession:
        return OrtSession(load_session(path, threads))

    def kernels(self, path: Path, scales: Collection[str]) -> dict[str, int]:
        with scratch() as folder:
            optimized = folder / "optimized.onnx"
            load_session(path, 1, optimized)
            return fused_kernels(optimized, scales)


def fused_kernels(optimized: Path, scales: Collection[str]) -> dict[str, int]:
    """`Target.kernels`, of a graph that onnxruntime has optimised."""
    graph = onnx.load(optimized, load_external_data=False).graph
    found = dict.fromkeys(scales, 0)
    for node in graph.node:
        place = _SCALE_INPUT.get(node.op_type)
        if place is not None and node.input[place] in found:
            found[node.input[place]] += 1
    return found


def _saturates() -> bool:
    """Whether kernels that are not told to be precise are known to saturate on this processor."""
    return "avx2" in processor.instructions() and not _vnni()


def _vnni() -> bool:
    return "vnni" in processor.instructions()


def _precise(version: str) -> bool:
    return Version(version) >= _PRECISE_SINCE


def session_options(threads: int) -> ort.SessionOptions:
    """What sessions are set to, all optimisations included.

    Integer kernels are exact on every processor: without VNNI, onnxruntime's default ones add pairs
    of products of 8 bits in 16, which can saturate, and `PRECISE` takes slower ones. It would take
    them where there is VNNI too, so it is not set there. Versions without it are refused for
    weights that saturate (`OnnxRuntime.check_layers`). Threads stop to spin when a run ends: of
    sessions that are timed in turns, those that wait would slow the one that runs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not _vnni() and _precise(ort.__version__):
        options.add_session_config_entry(*PRECISE)
    return options


def load_session(path: Path, threads: int, optimized: Path | None = None) -> ort.InferenceSession:
    """A session with `session_options`; the optimised graph goes to `optimized`."""
    options = session_options(threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: onnxruntime cannot load it: {reason}") from error


TARGET = OnnxRuntime()
