"""`export.floats`: what stays float stored in float16, and computed in it."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import onnx
import pytest
import torch
from kinds import merged, pruned, quantized, sparse
from onnx import TensorProto, numpy_helper
from torch import Tensor

from helpers.cli import EXAMPLE, Call
from vitcompress import chain, pipeline
from vitcompress.errors import InputError, ParityError
from vitcompress.export.floats import check_weights, in_float16
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.export.onnx import export_onnx, metadata
from vitcompress.export.parity import check_parity
from vitcompress.model.architecture import VitModel
from vitcompress.terms import Floats

MakeVit = Callable[..., VitModel]
KINDS: dict[str, Callable[[MakeVit], VitModel]] = {
    "rotary": lambda make: make("eva02_tiny_patch14_224", depth=1),
    "all float stages": lambda make: sparse(merged(pruned(make(depth=3)))),
    "quantized": lambda make: quantized(make(depth=1), 4, terms=2, residual_tokens=1, group=32),
}
TARGETS = "onnxruntime", "portable"
RECIPE = EXAMPLE + "stages: []\n"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_files_that_compute_in_float16_agree(
    kind: str, target: str, make_vit: MakeVit, pixels: Tensor, tmp_path: Path
) -> None:
    model = in_float16(KINDS[kind](make_vit), "float16")
    export_onnx(model, path := tmp_path / "m.onnx", {}, target, "float16")
    facts = check_parity(path, model, pixels, 1, target, "float16")
    assert facts["mean_float16_noise"] > 0
    assert facts.get("fused_layers", 0) == len(model.anatomy.quantized())
    assert facts.get("worst_layer_mismatch", 0) == 0
    graph, known = onnx.load(path).graph, {"logits", "pixels"}
    ends = (*graph.input, *graph.output)
    assert {each.name for each in ends} == known
    assert {each.type.tensor_type.elem_type for each in ends} == {TensorProto.FLOAT}
    assert metadata(path)["floats"] == "float16"


def test_weights_in_float16_are_half_the_file_and_exact(
    make_vit: MakeVit, pixels: Tensor, tmp_path: Path
) -> None:
    vit, target = make_vit(embed_dim=128, depth=1), "portable"
    sizes = {}
    for floats in get_args(Floats):
        model = in_float16(vit, floats)
        export_onnx(model, path := tmp_path / f"{floats}.onnx", {}, target, floats)
        sizes[floats] = path.stat().st_size
        if floats != "float16":
            assert check_parity(path, model, pixels, 1, target, floats)["passed"]
    assert sizes["float16_weights"] < 0.55 * sizes["float32"]
    assert sizes["float16"] < 0.55 * sizes["float32"]


def test_a_wrong_file_is_told_from_one_that_rounds(
    vit: VitModel, pixels: Tensor, tmp_path: Path
) -> None:
    model = in_float16(vit, "float16")
    export_onnx(model, path := tmp_path / "m.onnx", {}, floats="float16")
    written = onnx.load(path)
    (bias,) = (each for each in written.graph.initializer if "blocks.0.mlp.fc1.bias" in each.name)
    wrong = numpy_helper.to_array(bias) + 0.05
    bias.CopyFrom(numpy_helper.from_array(wrong.astype("float16"), bias.name))
    onnx.save(written, path)
    with pytest.raises(ParityError, match="beyond the rounding to float16"):
        check_parity(path, model, pixels, 1, floats="float16")


def test_safetensors_hold_what_is_exported(vit: VitModel, pixels: Tensor, tmp_path: Path) -> None:
    model = in_float16(vit, "float16_weights")
    save_folder(model, tmp_path)
    again = load_folder(tmp_path)
    assert torch.equal(again.module(pixels), model.module(pixels))
    matrices = {name for name, p in vit.module.named_parameters() if p.ndim > 1}
    assert set(again.architecture.half) == matrices
    assert in_float16(again, "float16_weights").architecture == again.architecture
    assert in_float16(vit, "float32") is vit


def test_what_float16_does_not_hold_is_refused_or_stays(vit: VitModel, make_vit: MakeVit) -> None:
    vit.module.get_parameter("blocks.1.mlp.fc1.weight")[0, 0] = -7e4
    vit.module.get_parameter("head.weight").mul_(1e-9)
    told = r"export\.floats: blocks\.1\.mlp\.fc1\.weight holds 70000, and float16 ends at 65504"
    with pytest.raises(InputError, match=told):
        in_float16(vit, "float16")
    with pytest.raises(InputError, match=told):
        check_weights(vit, make_vit(), "float16")
    check_weights(vit, make_vit(), "float32")
    check_weights(vit, quantized(make_vit(), 8), "float16")  # codes hold it
    vit.module.get_parameter("blocks.1.mlp.fc1.weight")[0, 0] = 0
    assert "head.weight" not in in_float16(vit, "float16").architecture.half


@pytest.mark.parametrize("command", ["run", "plan", "export"])
def test_it_is_told_before_the_work(
    command: str, call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = pipeline.load_dense

    def beyond(recipe: object) -> VitModel:
        model = read(recipe)  # type: ignore[arg-type]
        with torch.no_grad():
            next(p for p in model.module.parameters() if p.ndim > 1).view(-1)[0] = 1e6
        return model

    for part in (chain, pipeline):
        monkeypatch.setattr(part, "load_dense", beyond)
    monkeypatch.setattr(pipeline, "export_onnx", lambda *_: pytest.fail("a file was written"))
    evaluation = ["--evaluation", "example:glyphs/evaluation"]
    given = ["example:glyphs", *evaluation] if command == "export" else [recipe]
    out = [] if command == "plan" else ["--out", tmp_path / "out"]
    called = call(command, *given, "--set", "export.floats=float16", *out, code=2)
    assert "export.floats" in called.stderr.strip().splitlines()[-1]
    assert "holds 1e+06" in called.stderr
    assert not (tmp_path / "out").exists()
