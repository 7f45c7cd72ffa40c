"""What an export leaves in memory."""

import gc
from weakref import ref

from torch import nn

from vitcompress.export.onnx import Part, export_parts


def test_a_model_that_was_exported_is_let_go() -> None:
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    alive = ref(module)
    export_parts({"only": Part(module, (4,))}, "onnxruntime")
    del module
    gc.collect()
    assert alive() is None
