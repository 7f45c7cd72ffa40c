"""What is done to a traced graph before it is written: one pass a file.

A pass changes a model in place. The first line of its docstring says what it ensures; it returns
how many places it has changed.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from vitcompress.model.architecture import Architecture
from vitcompress.targets import Target
from vitcompress.terms import Floats


@dataclass(frozen=True)
class Source:
    """What a graph was traced from, and what for.

    `tensors`: the names of all tensors of the module. `facts`: what the file is to say of itself.
    `floats`: what floats are to be.
    """

    architecture: Architecture
    tensors: Collection[str]
    facts: Mapping[str, str]
    target: Target
    floats: Floats = "float32"


Pass = Callable[[ir.Model, Source], int]
