"""What the output of a model is: described heads, and the choice of the user."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.models import rebuilt
from vitcompress.data.preprocess import Preprocess
from vitcompress.errors import InputError
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.measure.cost import dense_macs, macs
from vitcompress.model import architecture
from vitcompress.model.architecture import Architecture, VitModel, from_source
from vitcompress.model.checkpoint import load_model
from vitcompress.model.families import adopt
from vitcompress.model.head import ActivationLayer, Choice, Head, LinearLayer, NormLayer
from vitcompress.model.layouts import Converted
from vitcompress.model.merging import Merging
from vitcompress.model.tail import tailed
from vitcompress.stages.context import Context
from vitcompress.stages.merge.config import MergeConfig
from vitcompress.stages.merge.stage import merge
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.prune.stage import prune
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import quantize

PREPROCESS = Preprocess(
    input_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bilinear"
)
NAME = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2}
SMALL |= {"num_heads": 2}
SWIN = "swin_tiny_patch4_window7_224"
SWIN_SMALL: dict[str, Any] = {"img_size": 32, "window_size": 4, "embed_dim": 32}
SWIN_SMALL |= {"depths": (1, 1), "num_heads": (2, 2), "patch_size": 4}

Make = Callable[..., nn.Module]


def read(module: nn.Module, path: Path, choice: Choice, options: dict[str, Any]) -> VitModel:
    save_file(module.state_dict(), path)
    return from_source(str(path), None, options, None, {}, choice=choice)


def mlp(width: int) -> tuple[Head, nn.Sequential]:
    """A head of an MLP, normalised, and the same in plain torch."""
    layers = (
        LinearLayer(inputs=width, outputs=48),
        ActivationLayer(name="gelu"),
        NormLayer(width=48, eps=1e-6),
        LinearLayer(inputs=48, outputs=7, bias=False),
    )
    plain = [nn.Linear(width, 48), nn.GELU(), nn.LayerNorm(48, 1e-6), nn.Linear(48, 7, False)]
    generator = torch.Generator().manual_seed(3)
    made = nn.Sequential(*plain).requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return Head(layers=layers, normalise=True), made


def described(
    body: nn.Module, name: str, options: dict[str, Any], head: Head, layers: nn.Module
) -> VitModel:
    """The model of `body` and of a described head with the tensors of `layers`."""
    tensors = body.state_dict() | {f"head.{k}": v for k, v in layers.state_dict().items()}
    module, spec = load_model(Converted(name, tensors, options, head=head), source="x.pth")
    return VitModel(adopt(module), Architecture(**spec.model_dump()), PREPROCESS)


@pytest.mark.parametrize("normalise", [None, True])
@pytest.mark.parametrize("output", ["pooled", "token", "average", "joined", "tokens"])
def test_features_are_the_output_that_was_chosen(
    make_module: Make, pixels: Tensor, tmp_path: Path, output: Any, normalise: bool | None
) -> None:
    trained = make_module(reg_tokens=2)
    options = {**SMALL, "reg_tokens": 2}
    model = read(trained, tmp_path / f"{NAME}.safetensors", Choice(output, normalise), options)
    tokens = trained.forward_features(pixels)  # type: ignore[operator]
    token, patches = tokens[:, 0], tokens[:, 3:]
    expected = {
        "pooled": token,
        "token": token,
        "average": patches.mean(1),
        "joined": torch.cat([token, patches.mean(1)], 1),
        "tokens": patches,
    }[output]
    expected = F.normalize(expected, dim=-1) if normalise else expected
    torch.testing.assert_close(model.module(pixels), expected, rtol=1e-5, atol=1e-5)
    assert (model.task.name, model.num_classes) == ("embedding", 0)
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))
    assert torch.equal(model.anatomy.run(pixels), model.module(pixels))
    assert (tailed(model) is not None) == (output in ("pooled", "token"))
    assert macs(model) == dense_macs(model)


def test_a_head_that_timm_has_is_normalised(
    make_module: Make, pixels: Tensor, tmp_path: Path
) -> None:
    trained = make_module()
    model = read(trained, tmp_path / f"{NAME}.safetensors", Choice(None, True), SMALL)
    expected = F.normalize(trained(pixels), dim=-1)
    torch.testing.assert_close(model.module(pixels), expected, rtol=1e-5, atol=1e-5)
    assert model.num_classes == 10
    assert model.anatomy.select(["head"], "key") == ["head.0"]
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))


@pytest.mark.parametrize("family", ["plain", "windowed", "generic", "rotary"])
def test_layers_of_a_head_are_described(make_module: Make, pixels: Tensor, family: str) -> None:
    name, options, width = {
        "plain": (NAME, SMALL, 64),
        "windowed": (SWIN, SWIN_SMALL, 64),
        "generic": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 32)}, 32),
        "rotary": ("eva02_tiny_patch14_224", {**SMALL, "embed_dim": 64}, 64),
    }[family]
    timm_options = {**options, "num_classes": 0}
    if family in ("windowed", "generic"):
        import timm

        body = timm.create_model(name, **timm_options).eval().requires_grad_(False)
    else:
        body = make_module(name, num_classes=0)
    expected_of = body(pixels)
    head, layers = mlp(width)
    model = described(body, name, options, head, layers)
    anatomy = model.anatomy
    assert (anatomy.family, model.num_classes) == (family, 7)
    expected = F.normalize(layers(expected_of), dim=-1)
    torch.testing.assert_close(model.module(pixels), expected, rtol=1e-4, atol=1e-5)
    last = anatomy.select(["head"], "key")
    assert [n.rpartition(".")[2] for n in last] == ["0", "3"]
    assert torch.equal(rebuilt(model)(pixels), model.module(pixels))


def test_a_head_reads_class_token_and_average(make_module: Make, pixels: Tensor) -> None:
    body = make_module(num_classes=0)
    layer = nn.Linear(128, 5).requires_grad_(False)
    head = Head(pool="joined", layers=(LinearLayer(inputs=128, outputs=5),))
    model = described(body, NAME, SMALL, head, nn.Sequential(layer))
    tokens = body.forward_features(pixels)  # type: ignore[operator]
    expected = layer(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    torch.testing.assert_close(model.module(pixels), expected, rtol=1e-5, atol=1e-5)
    assert "joined" in model.anatomy.refusals["embedding"]
    assert tailed(model) is None


def test_every_patch_has_its_feature_after_merging(make_vit: Any, pixels: Tensor) -> None:
    dense = make_vit(num_classes=0)
    text = dense.architecture.model_copy(update={"head": Head(pool="tokens", layers=())})
    merging = Merging(method="tome", kept=(9, 9))
    module = architecture.build(text.model_copy(update={"merging": merging}))
    module.load_state_dict(dense.module.state_dict())
    features = module(pixels)
    assert features.shape == (3, 16, 64)
    assert all(len(each.unique(dim=0)) == 8 for each in features)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["joined", "tokens"])
def test_features_are_exported(
    make_module: Make, pixels: Tensor, tmp_path: Path, output: Any
) -> None:
    path, file = tmp_path / f"{NAME}.safetensors", tmp_path / "model.onnx"
    model = read(make_module(), path, Choice(output, True), SMALL)
    export_onnx(model, file, {})
    check_parity(file, model, pixels, 1, "onnxruntime")


@pytest.mark.parametrize(
    ("name", "options", "choice", "message"),
    [
        (NAME, {**SMALL, "class_token": False, "global_pool": "avg"}, "token", "no class token"),
        (SWIN, SWIN_SMALL, "joined", "no class token; give average or tokens"),
        ("convnext_atto", {"depths": (1,) * 4, "dims": (8,) * 4}, "tokens", "give pooled"),
        ("deit_tiny_distilled_patch16_224", SMALL, "pooled", "leave out model.output"),
    ],
)
def test_what_a_model_does_not_have_is_told(
    tmp_path: Path, name: str, options: dict[str, Any], choice: Any, message: str
) -> None:
    import timm

    trained = timm.create_model(name, **options)
    with pytest.raises(InputError, match=message):
        read(trained, tmp_path / f"{name}.safetensors", Choice(choice), options)


def normalised(make_module: Make, tmp_path: Path) -> VitModel:
    path = tmp_path / f"{NAME}.safetensors"
    return read(make_module(), path, Choice(None, True), SMALL).with_task("embedding")


def test_a_described_head_is_narrowed_and_quantized(
    make_module: Make, pixels: Tensor, context: Context, tmp_path: Path
) -> None:
    dense = normalised(make_module, tmp_path)
    cut = {"budget": {"macs": 0.7}, "multiple": 4, "structures": ["embedding"]}
    model = prune(dense, PruneConfig.model_validate(cut), context).model
    assert 4 <= (model.architecture.embedding or 0) < 64
    told = {"layers": ["blocks", "head"], "rounding": "nearest"}
    model = quantize(model, QuantizeConfig.model_validate(told), context).model
    assert "head.0" in model.architecture.quantized
    found = model.module(pixels)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    assert torch.equal(rebuilt(model)(pixels), found)


@pytest.mark.slow
def test_a_normalised_merged_quantized_head_is_exported(
    make_module: Make, pixels: Tensor, context: Context, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    path = tmp_path / f"{NAME}.safetensors"
    model = read(make_module(), path, Choice("tokens", True), SMALL)
    merging = MergeConfig.model_validate({"method": "tome", "budget": {"macs": 0.8}})
    model = merge(model, merging, context).model
    told = {"layers": ["blocks"], "rounding": "nearest"}
    model = quantize(model, QuantizeConfig.model_validate(told), context).model
    export_onnx(model, file, {})
    check_parity(file, model, pixels, 1, "onnxruntime")


def test_layers_must_fit_together() -> None:
    with pytest.raises(ValidationError, match=r"layers.1 takes 9 values, and 8 come to it"):
        Head(layers=(LinearLayer(inputs=4, outputs=8), NormLayer(width=9)))
