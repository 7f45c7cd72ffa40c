"""Files for any runtime: what is in them, and that they compute what the model computes."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from torch import Tensor

from vitcompress.export.onnx import export_onnx, metadata
from vitcompress.export.parity import check_parity
from vitcompress.model.architecture import VitModel

# Shifts of bits are not exact in every runtime, and functions not known to all.
UNKNOWN = {
    "Attention",
    "RotaryEmbedding",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "RMSNormalization",
}
KINDS = (
    "float",
    "8 bits in two terms",
    "7 bits in two terms",  # and the head
    "4 bits in groups",
    "3 bits, dynamic",
    "rotary",
    "merged",
)


@pytest.mark.parametrize("kind", KINDS)
def test_old_operators_compute_the_same(
    kind: str, model_of: Callable[[str], VitModel], pixels: Tensor, tmp_path: Path
) -> None:
    model = model_of(kind)
    export_onnx(model, path := tmp_path / "m.onnx", {}, "portable")
    written = onnx.load(path)
    assert [(each.domain, each.version) for each in written.opset_import] == [("", 17)]
    assert written.ir_version <= 8
    assert not written.functions
    assert metadata(path)["runtime"] == "onnxruntime>=1.17"
    assert not UNKNOWN & {node.op_type for node in written.graph.node}
    facts = check_parity(path, model, pixels, 1, "portable")
    layers = model.anatomy.quantized()
    assert facts.get("fused_layers", 0) == len(layers)
    if layers:
        assert facts["worst_layer_mismatch"] == 0
    nodes = {node.name.partition("/")[0] for node in written.graph.node}
    assert set(layers) <= nodes
