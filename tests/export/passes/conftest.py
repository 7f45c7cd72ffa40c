"""Small graphs, written out, and what a pass makes of them."""

from collections.abc import Callable, Iterable, Mapping

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from vitcompress.export.passes import Source
from vitcompress.model.architecture import Architecture
from vitcompress.targets.onnxruntime import TARGET

Graph = Callable[[str], ir.Model]
MakeSource = Callable[..., Source]
HEADER = '<ir_version: 11, opset_import: ["" : 23]>\n'


@pytest.fixture(scope="session")
def graph() -> Graph:
    """A function that reads a graph in ONNX's own notation."""

    def read(text: str) -> ir.Model:
        return ir.from_proto(onnx.parser.parse_model(HEADER + text))

    return read


@pytest.fixture(scope="session")
def source() -> MakeSource:
    """A function that returns where a graph comes from; the keywords describe its architecture."""

    def make(
        tensors: Iterable[str] = (), facts: Mapping[str, str] | None = None, **changes: object
    ) -> Source:
        architecture = Architecture.model_validate({"timm": "none", **changes})
        return Source(architecture, set(tensors), facts or {}, TARGET)

    return make
