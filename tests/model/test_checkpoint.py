"""Checkpoints that were read, made into timm models; refusing those that do not fit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from helpers.checkpoints import NAME, SMALL, State, assert_same
from vitcompress.errors import InputError
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.model.architecture import VitModel
from vitcompress.model.checkpoint import (
    ModelSpec,
    load_model,
    pretrained_cfg,
    pretrained_model,
)
from vitcompress.model.layouts import Converted
from vitcompress.model.reading import read_source

ASSETS = Path(__file__).parents[3] / "shared" / "assets" / "checkpoints"


def make(name: str = NAME, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": 32, "num_classes": 10, **SMALL, **options}
    model: nn.Module = timm.create_model(name, **options).eval()
    return model


@pytest.fixture(scope="module")
def state() -> State:
    return make().state_dict()


def misfit(state: State, name: str = NAME, **arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_model(Converted(name, state), **{"options": SMALL, "source": "x.pth", **arguments})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("x.pth: ")
    return message


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 7, "in_chans": 1},
        {"img_size": 48},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
        {"global_pool": "map", "class_token": False, "qk_norm": True, "init_values": 1e-5},
        {"no_embed_class": True, "reg_tokens": 4, "pre_norm": True},
        {"name": "deit_tiny_distilled_patch16_224", "num_classes": 5},
    ],
    ids=str,
)
def test_the_checkpoint_decides_classes_channels_and_size(options: dict[str, Any]) -> None:
    name = options.pop("name", NAME)
    trained = make(name, **options)
    seen = ("num_classes", "in_chans", "img_size")
    unseen = SMALL | {key: value for key, value in options.items() if key not in seen}
    model, spec = load_model(Converted(name, trained.state_dict()), unseen, source="x.pth")

    spec = ModelSpec.model_validate_json(spec.model_dump_json())
    again = timm.create_model(spec.timm, pretrained=False, **spec.options).eval()
    again.load_state_dict(model.state_dict())
    channels, size = options.get("in_chans", 3), options.get("img_size", 32)
    assert pretrained_cfg(spec)["input_size"] == [channels, size, size]
    images = torch.rand(2, channels, size, size)
    expected = trained(images)
    assert expected.shape == (2, options.get("num_classes", 10))
    assert torch.equal(model(images), expected)
    assert torch.equal(again(images), expected)
    assert not model.training


def test_defaults_are_not_spelled_out() -> None:
    trained = timm.create_model(NAME, depth=1)
    _, spec = load_model(Converted(NAME, trained.state_dict()), {"depth": 1}, source="x.pth")
    assert spec == ModelSpec(timm=NAME, options={"num_classes": 1000, "in_chans": 3, "depth": 1})


def test_layer_scale_names_of_deit3() -> None:
    trained = make("deit3_small_patch16_224").state_dict()
    old = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in trained.items()}
    assert old.keys() != trained.keys()
    model, _ = load_model(Converted("deit3_small_patch16_224", old), SMALL, source="x.pth")
    assert_same(model.state_dict(), trained)


def test_derived_tensors_are_ignored(state: State) -> None:
    model, _ = load_model(
        Converted(NAME, {**state, "mask_token": torch.ones(1, 64)}), SMALL, source="x.pth"
    )
    assert_same(model.state_dict(), state)


def test_class_counts_that_contradict(state: State) -> None:
    message = misfit(state, num_classes=1000)
    assert "the checkpoint has 10 classes, the recipe says 1000" in message
    assert "model.num_classes" in message
    assert "10 classes" in misfit(state, options={**SMALL, "num_classes": 4})
    load_model(Converted(NAME, state), SMALL, num_classes=10, source="x.pth")


def test_tensors_that_do_not_fit_are_counted_and_named(state: State) -> None:
    broken = {key: value for key, value in state.items() if not key.startswith("blocks.1.attn")}
    broken |= {"extra.weight": torch.ones(2, 3), "norm.weight": torch.ones(65)}
    message = misfit(broken)
    assert "4 missing (blocks.1.attn.qkv.weight [192, 64], " in message
    assert ", …); " in message
    assert "1 unexpected (extra.weight [2, 3]); " in message
    assert "1 of another shape (norm.weight [65] instead of [64]): " in message


def test_nothing_else_is_resampled_or_cast_to_fit(state: State) -> None:
    codes = {**state, "blocks.0.attn.qkv.weight": torch.ones(192, 64, dtype=torch.int8)}
    assert "int8 [192, 64] instead of [192, 64]" in misfit(codes)


def test_layers_that_timm_would_leave_out_are_told(state: State) -> None:
    assert "pre_logits.fc.weight" in misfit({**state, "pre_logits.fc.weight": torch.ones(64, 64)})


def test_a_missing_head_is_told(state: State) -> None:
    headless = {key: value for key, value in state.items() if not key.startswith("head.")}
    assert "2 missing (head.weight [1000, 64], head.bias [1000])" in misfit(headless)


def test_images_that_are_not_square(state: State) -> None:
    wide = make(img_size=(32, 48)).state_dict()
    assert "no square grid" in misfit(wide)
    options = {**SMALL, "img_size": [32, 48]}
    _, spec = load_model(Converted(NAME, wide), options, source="x.pth")
    assert pretrained_cfg(spec)["input_size"] == [3, 32, 48]


def test_weights_that_are_not_finite(state: State) -> None:
    broken = {**state, "norm.weight": torch.full((64,), torch.nan)}
    assert "norm.weight holds NaN" in misfit(broken)


def test_names_and_options_that_timm_does_not_know(state: State) -> None:
    assert "vit_tiny_patch16_224" in misfit(state, "vit_tiny_patch16_225")
    assert "no model" in misfit(state, "hf-hub:someone/vit")
    assert "vit_tiny_patch16_224.augreg" in misfit(state, f"{NAME}.augreg_in22k")
    message = misfit(state, options={"no_such_option": 1})
    assert "no_such_option" in message
    assert "model.options" in message


def test_pretrained_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **_: Any) -> None:
        raise FileNotFoundError("cannot find the requested files\nin the local cache")

    with pytest.raises(InputError, match=r"timm:no_such_vit: timm has no model"):
        pretrained_model("no_such_vit")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        InputError, match=r"timm:vit_tiny_patch16_224: .*local checkpoint"
    ) as caught:
        pretrained_model(NAME)
    assert "\n" not in str(caught.value)


def test_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def published(name: str, **options: Any) -> nn.Module:
        calls.append((name, options))
        return trained.train()

    trained = timm.create_model(NAME, depth=1, num_classes=7)
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", published)
        model, spec = pretrained_model(NAME)
    assert calls == [(NAME, {"pretrained": True})]
    assert model is trained
    assert not model.training
    assert spec == ModelSpec(timm=NAME, options={"num_classes": 7, "in_chans": 3})


def test_pretrained_cfg() -> None:
    facts = pretrained_cfg(ModelSpec(timm="deit_tiny_patch16_224"))
    assert facts == json.loads(json.dumps(facts))
    assert facts["input_size"] == [3, 224, 224]
    assert facts["mean"] == [0.485, 0.456, 0.406]
    assert (facts["crop_pct"], facts["interpolation"]) == (0.9, "bicubic")
    assert pretrained_cfg(ModelSpec(timm=NAME))["std"] == [0.5, 0.5, 0.5]
    assert pretrained_cfg(ModelSpec(timm=NAME, options={"in_chans": 1}))["mean"] is None
    with pytest.raises(InputError, match="no model"):
        pretrained_cfg(ModelSpec(timm="no_such_vit"))


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS.is_dir(), reason=f"real checkpoints are not at {ASSETS}")
@pytest.mark.parametrize(
    ("file", "spec"),
    [
        ("deit_tiny_patch16_224.in1k", {"num_classes": 1000, "in_chans": 3}),
        ("vit_tiny_patch16_224.tinyimagenet200", {"num_classes": 200, "in_chans": 3}),
    ],
)
def test_real_checkpoints(file: str, spec: dict[str, int], tmp_path: Path) -> None:
    path = ASSETS / f"{file}.safetensors"
    state = dict(read_source(path).tensors)
    model, found = load_model(Converted(None, state), source=str(path))
    assert found == ModelSpec(timm=file.partition(".")[0], options=spec)
    assert_same(model.state_dict(), state)
    with pytest.raises(InputError, match="deit_tiny_patch16_224, vit_tiny_patch16_224"):
        load_model(Converted(None, state), source=str(tmp_path / "best.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS.is_dir(), reason=f"real checkpoints are not at {ASSETS}")
def test_a_real_swin_by_its_name() -> None:
    state = dict(read_source(ASSETS / "swin_cifar10.safetensors").tensors)
    options = json.loads((ASSETS / "swin_cifar10.json").read_text())["arguments"]
    model, _ = load_model(Converted("swin_tiny_patch4_window7_224", state), options, source="swin")
    assert_same(model.state_dict(), state)


def test_a_folder_with_infinity_is_refused(vit: VitModel, tmp_path: Path) -> None:
    vit.module.blocks[1].mlp.fc1.bias[0] = float("inf")
    save_folder(vit, tmp_path)
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.fc1\.bias holds NaN or infinity"):
        load_folder(tmp_path)


def test_a_buffer_with_infinity_is_refused() -> None:
    name = "levit_128s"
    options = {"img_size": 64, "embed_dim": (16, 16, 16), "depth": (1, 1, 1)}
    trained = timm.create_model(name, **options).state_dict()
    broken = next(key for key in trained if key.endswith("running_var"))
    trained[broken][0] = float("inf")
    with pytest.raises(InputError, match=f"{re.escape(broken)} holds NaN"):
        load_model(Converted(name, trained), options, source="x.pth")
