"""What an export leaves in memory."""

import gc
import linecache
from weakref import ref

from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from vitcompress.export.onnx import Part, export_parts


def test_a_model_that_was_exported_is_let_go() -> None:
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    alive = ref(module)
    export_parts({"only": Part(module, (4,))}, "onnxruntime")
    del module
    gc.collect()
    assert alive() is None


def test_traces_do_not_pile_up() -> None:
    shapes, files = _traces()
    for _ in range(4):
        export_parts({"only": Part(nn.Linear(4, 4), (3, 4))}, "onnxruntime")
    shapes_after, files_after = _traces()
    assert shapes_after <= shapes + 2  # torch keeps the last ones
    assert files_after <= files


def _traces() -> tuple[int, int]:
    """The shapes of traces that are alive, and the generated files that `linecache` knows."""
    gc.collect()
    shapes = sum(type(each) is ShapeEnv for each in gc.get_objects())
    return shapes, sum(name.startswith("<eval_with_key>") for name in linecache.cache)
