"""Compress trained Vision Transformers: checkpoint in, verified ONNX out.

report = vitcompress.compress("vit-int8", "deit.safetensors", "out/deit", calibration="images")
model = vitcompress.load("out/deit")
logits = model(pixels)
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is slow to import, and the command line may not need it
    from vitcompress.api import compress, load, search
    from vitcompress.errors import InputError, ParityError, RunError, VitcompressError
    from vitcompress.report.model import Report

__all__ = [
    "InputError",
    "ParityError",
    "Report",
    "RunError",
    "VitcompressError",
    "__version__",
    "compress",
    "load",
    "search",
]

__version__ = version("vitcompress")

_HOMES = {
    **dict.fromkeys(("compress", "load", "search"), "vitcompress.api"),
    **dict.fromkeys(__all__[:2] + __all__[3:5], "vitcompress.errors"),
    "Report": "vitcompress.report.model",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
