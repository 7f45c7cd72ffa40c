"""What an export leaves in memory."""

import gc
from collections import Counter
from weakref import ref

from torch import nn

from vitcompress.export.onnx import Part, export_parts


def traces_after_export() -> Counter[str]:
    """The objects of torch's tracing, by class, once a model is exported, and gone."""
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    alive = ref(module)
    export_parts({"only": Part(module, (4,))}, "onnxruntime")
    del module
    gc.collect()
    assert alive() is None
    classes = (type(each) for each in gc.get_objects())
    return Counter(str(each) for each in classes if "torch._subclasses" in str(each))


def test_nothing_but_what_is_the_same_for_all_models() -> None:
    traces_after_export()
    assert traces_after_export() == traces_after_export()
