"""Files for OpenVINO: refused where it cannot run them, and right where it can.

What needs the package is skipped without it.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor
from typer.testing import CliRunner

from vitcompress import targets
from vitcompress.cli import app
from vitcompress.errors import InputError, ParityError
from vitcompress.export.onnx import export_onnx, metadata
from vitcompress.export.parity import check_parity
from vitcompress.inspection import bench
from vitcompress.model.architecture import QuantizedLayer, VitModel
from vitcompress.targets.openvino import TARGET, OpenVino

RECIPE = """
model: {checkpoint: "example:glyphs"}
data: {evaluation: "example:glyphs/evaluation"}
stages: [{name: quant, type: quantize, activations: dynamic}]
export: {target: openvino}
"""
KINDS = (
    "float",
    "7 bits",
    "7 bits in two terms",
    "4 bits in groups",
    "4 bits in groups, float inputs",
    "sparse, 8 bits, float inputs",
    "rotary",
    "merged",
    "merged, 7 bits",
    "pruned",
    "sparse",
    "sparse, 4 bits",
)
ModelOf = Callable[[str], VitModel]
_missing = importlib.util.find_spec("openvino") is None


def needs_openvino(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.slow(pytest.mark.skipif(_missing, reason="needs openvino")(test))


def layer(bits: int, **more: object) -> QuantizedLayer:
    return QuantizedLayer.model_validate({"bits": bits, "activations": "static", **more})


def test_layers_that_would_run_in_floats_are_told_before_the_work(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.targets.openvino.TARGET", OpenVino(version="2026.4.1"))
    called = CliRunner().invoke(app, ["plan", str(recipe)])
    assert called.exit_code == 2
    assert "activations: static" in " ".join(called.stderr.split())


@pytest.mark.parametrize(
    ("saturates", "found", "remedy"),
    [
        (True, layer(8), "activations: float, or .* bits: 7"),
        (True, layer(6, group=24), "group: null"),
        (True, layer(7), None),
        (True, layer(6), None),
        (True, layer(4, group=24), None),
        (True, layer(8, activations="float"), None),
        (False, layer(8), None),
    ],
)
def test_weights_that_saturate_are_refused(
    saturates: bool, found: QuantizedLayer, remedy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.targets.openvino._saturates", lambda: saturates)
    if remedy is None:
        TARGET.check_layers({"blocks.0": found})
        return
    with pytest.raises(InputError, match=rf"\(blocks\.0\).*{remedy}"):
        TARGET.check_layers({"blocks.0": found})


def test_what_is_slow_on_a_processor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for saturates, activations, told in (
        (True, "static", True),
        (True, "float", False),
        (False, "static", False),
    ):
        monkeypatch.setattr("vitcompress.targets.openvino._saturates", lambda s=saturates: s)
        advice = TARGET.advice({"head": layer(7, activations=activations)})
        assert (advice is not None and "activations: float" in advice) == told


@needs_openvino
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_the_same_in_eight_bits(
    kind: str, model_of: ModelOf, pixels: Tensor, tmp_path: Path
) -> None:
    model = model_of(kind)
    export_onnx(model, path := tmp_path / "m.onnx", {}, "openvino")
    assert metadata(path)["target"] == "openvino"
    facts = check_parity(path, model, pixels, 1, "openvino")
    integers = [q for q in model.anatomy.quantized().values() if q.activations != "float"]
    assert facts.get("fused_layers", 0) == len(integers)
    # The same file in onnxruntime, where predict.py runs it.
    elsewhere = targets.load_target("onnxruntime").session(path, 1).run(pixels.numpy())
    assert np.abs(elsewhere - model.module(pixels).numpy()).max() < 1e-3


@pytest.fixture
def unrefused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are not refused before the work: what else finds them out is tried."""
    monkeypatch.setattr(OpenVino, "check_layers", lambda *_: None)


@needs_openvino
@pytest.mark.usefixtures("unrefused")
def test_a_layer_that_stays_float_fails_by_name(
    model_of: ModelOf, pixels: Tensor, tmp_path: Path
) -> None:
    model = model_of("3 bits, dynamic")
    export_onnx(model, path := tmp_path / "m.onnx", {}, "openvino")
    with pytest.raises(ParityError, match=r"blocks\.0\.attn\.qkv: openvino did not fuse it"):
        check_parity(path, model, pixels, 1, "openvino")


@needs_openvino
@pytest.mark.usefixtures("unrefused")
def test_saturated_sums_fail_by_name(model_of: ModelOf, pixels: Tensor, tmp_path: Path) -> None:
    from vitcompress.targets.openvino import runtime

    if not runtime.saturates():
        pytest.skip("8-bit products are exact on this processor")
    model = model_of("8 bits in two terms")
    export_onnx(model, path := tmp_path / "m.onnx", {}, "openvino")
    with pytest.raises(ParityError, match=r"blocks\.0\..* of the integer sums differ"):
        check_parity(path, model, pixels * 3, 1, "openvino")


@needs_openvino
def test_a_file_is_timed_where_it_belongs(model_of: ModelOf, tmp_path: Path) -> None:
    files = {target: tmp_path / f"{target}.onnx" for target in ("openvino", "onnxruntime")}
    for target, path in files.items():
        export_onnx(model_of("float"), path, {}, target)
    found = bench([str(path) for path in files.values()], 1, 0, 1)
    for target, path in files.items():
        assert found[str(path)]["runtime"].startswith(target)
    (tmp_path / "wrong.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="openvino cannot load it"):
        TARGET.session(tmp_path / "wrong.onnx", 1)
