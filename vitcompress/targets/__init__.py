"""The runtimes that files are exported for: one module a target, and nothing of it elsewhere.

A target is a module of this package with the object `TARGET`. What targets there are is known
without importing them, for the schema of recipes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from packaging.requirements import Requirement

from vitcompress import registry
from vitcompress.errors import InputError

if TYPE_CHECKING:  # the schema of recipes needs no arrays
    import numpy as np

    from vitcompress.model.architecture import QuantizedLayer

DEFAULT = "onnxruntime"

OperatorTable = Mapping[Callable[..., Any], Callable[..., Any]]
"""By torch operator, a function that writes it in operators of ONNX, as onnxscript takes them."""


class Session(Protocol):
    """An ONNX file held ready to be run."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image, [C, H, W]."""
        ...

    @property
    def output_shape(self) -> tuple[int | str, ...]:
        """Of what it gives for a batch; the names of sizes that are not fixed."""
        ...

    def run(self, pixels: "np.ndarray") -> "np.ndarray":
        """Pixels float32 [n, C, H, W] → the first output."""
        ...

    def values(self, pixels: "np.ndarray", names: Sequence[str]) -> "list[np.ndarray]":
        """The outputs of these `names` for the same pixels."""
        ...


class Target(Protocol):
    """All that depends on the runtime.

    `requirement`: what pip installs to run its files, from the lowest version on. `version`: of the
    runtime that is here; None where there is none. `opset`, `ir_version`: of ONNX, that files are
    written in. `functions`: whether it reads functions that a file defines. `shapes_kept`:
    operators whose output shapes the runtime has to be told.
    """

    @property
    def name(self) -> str: ...

    @property
    def requirement(self) -> str: ...

    @property
    def version(self) -> str | None: ...

    @property
    def opset(self) -> int: ...

    @property
    def ir_version(self) -> int: ...

    @property
    def functions(self) -> bool: ...

    @property
    def shapes_kept(self) -> frozenset[str]: ...

    def operators(self) -> OperatorTable:
        """What our custom operators become."""
        ...

    def check_layers(self, layers: "Mapping[str, QuantizedLayer]") -> None:
        """Raise `InputError` for quantized layers, by name, that the runtime would not compute
        right, or not in integers, on this processor."""
        ...

    def advice(self, layers: "Mapping[str, QuantizedLayer]") -> str | None:
        """What would be faster than these layers on this processor; None where nothing is known."""
        ...

    def session(self, path: Path, threads: int, exact: bool = False) -> Session:
        """Hold a file ready on so many threads (0: all). Raises `InputError` for one that cannot be
        loaded.

        `exact`: floats are float32, whatever the runtime takes by itself.
        """
        ...

    def kernels(self, path: Path, scales: Collection[str]) -> dict[str, int]:
        """How many integer kernels the runtime fuses in a file, by the initializer of `scales` that
        each of them rescales its sums with."""
        ...


def load_target(name: str) -> Target:
    """The target of this name. Raises `InputError` where its runtime is missing or too old."""
    target: Target = registry.load_module(__name__, name).TARGET
    needed = Requirement(target.requirement)
    if target.version is None:
        raise InputError(f"export.target: {needed.name} is not installed; pip install '{needed}'")
    if not needed.specifier.contains(target.version, prereleases=True):
        raise InputError(
            f"{needed.name} {target.version} cannot load what is exported for it with "
            f"export.target: {name}; pip install '{needed}'"
        )
    return target
