"""Image towers of open_clip, and whole models of it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from open_clip import CLIP, CustomTextCLIP, image_transform
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.layouts import Randomized
from vitcompress.data.preprocess import model_input
from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source
from vitcompress.model.layouts import Source, layout_of

VISION: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "width": 128,
    "layers": 2,
    "head_width": 32,
    "mlp_ratio": 2.0,
}
TEXT: dict[str, Any] = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}


def _features(model: Any, pixels: Tensor) -> Any:
    return model.encode_image(pixels)


def _folder(model: nn.Module, place: Path, embedding: int = 24, **config: Any) -> Path:
    """Writes what `open_clip.push_to_hf_hub` writes."""
    preprocess = config.pop("preprocess_cfg", {})
    vision = config.pop("vision_cfg", VISION)
    told = {"embed_dim": embedding, "vision_cfg": vision, "text_cfg": TEXT, **config}
    described = {"model_cfg": told, "preprocess_cfg": preprocess}
    (place / "open_clip_config.json").write_text(json.dumps(described))
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        place / "open_clip_model.safetensors",
    )
    return place


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "quick": ({"quick_gelu": True}, {}),
    "scaled": ({}, {"ls_init_value": 0.1, "norm_kwargs": {"eps": 1e-3}}),
    "pooled": ({}, {"pool_type": "avg", "no_ln_pre": True}),
    "normed after pooling": (
        {},
        {"pool_type": "avg", "final_ln_after_pool": True, "act_kwargs": {"approximate": "tanh"}},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder(
    change: str, randomized: Randomized, agree: Any, tmp_path: Path, capfd: Any
) -> None:
    model, vision = CHANGES[change][0], {**VISION, **CHANGES[change][1]}
    whole = randomized(CLIP(24, vision, TEXT, **model))
    place = _folder(whole, tmp_path, vision_cfg=vision, **model)
    read = agree(whole, place, _features)
    assert (read.task.name, read.num_classes) == ("embedding", 24)
    assert "text tower is left out" in (told := capfd.readouterr().err)
    assert "do not tell" not in told


def test_the_weights_of_a_folder(randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    model = randomized(CLIP(24, VISION, TEXT, quick_gelu=True))
    place = _folder(model, tmp_path, quick_gelu=True)
    agree(model, place / "open_clip_model.safetensors", _features)


@pytest.mark.parametrize("alone", [False, True])
def test_a_single_file(
    alone: bool, randomized: Randomized, agree: Any, tmp_path: Path, capfd: Any
) -> None:
    model = randomized(CustomTextCLIP(24, {**VISION, "head_width": 64}, TEXT))
    state = model.visual.state_dict() if alone else {"state_dict": model.state_dict()}
    torch.save(state, tmp_path / "clip.pt")
    agree(model, tmp_path / "clip.pt", _features)
    told = capfd.readouterr().err
    assert "2 heads, exact GELU" in told
    assert "quick_gelu for those of OpenAI" in told


_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 1, "num_heads": 2}
# Of each: what open_clip is told, and arguments of timm that make it small.
TRUNKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vit_tiny_patch16_224": ({"timm_pool": "avg", "timm_proj": "linear"}, _SMALL),
    "vit_medium_patch16_gap_240": (
        {"timm_pool": "", "timm_proj": "linear", "timm_proj_bias": True},
        _SMALL,
    ),
    "vit_base_patch16_siglip_224": ({"timm_pool": "map", "timm_proj": "none"}, _SMALL),
    "eva02_tiny_patch14_224": ({"timm_pool": "token", "timm_proj": None}, _SMALL),
    "convnext_atto": (
        {"timm_pool": "", "timm_proj": "mlp"},
        {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    ),
    "swin_tiny_patch4_window7_224": (
        {"timm_pool": "", "timm_proj": "linear"},
        {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)},
    ),
}


@pytest.fixture
def tower(randomized: Randomized, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A small model with the tower `name` of TRUNKS."""

    def make(name: str) -> Any:
        vision, small = TRUNKS[name]
        with monkeypatch.context() as patch:
            patch.setattr("timm.create_model", partial(timm.create_model, **small))
            width = 128 if vision["timm_proj"] == "none" else 24
            return randomized(CustomTextCLIP(width, {"timm_model_name": name, **vision}, TEXT))

    return make


@pytest.mark.parametrize("name", TRUNKS)
def test_a_tower_of_timm(
    name: str, tower: Callable[[str], Any], pixels: Tensor, tmp_path: Path
) -> None:
    model, (vision, small) = tower(name), TRUNKS[name]
    place = _folder(model, tmp_path, vision_cfg={"timm_model_name": name, **vision})
    read = from_source(str(place), None, small, None, {"input_size": 32})
    with torch.no_grad():
        found, expected = read.module(pixels), model.encode_image(pixels)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert read.task.name == "embedding"


def test_a_single_file_of_siglip(
    tower: Callable[[str], Any], agree: Any, tmp_path: Path, capfd: Any
) -> None:
    model = tower("vit_base_patch16_siglip_224")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "epoch_9.pt")
    read = agree(model, tmp_path / "epoch_9.pt", _features)
    assert (read.preprocess.mean[0], read.preprocess.crop_mode) == (0.5, "squash")
    assert "those of SigLIP" in capfd.readouterr().err


def test_a_tower_of_timm_alone(tower: Callable[[str], Any], agree: Any, tmp_path: Path) -> None:
    model = tower("vit_base_patch16_siglip_224")
    torch.save(model.visual.state_dict(), tmp_path / "image.pt")
    agree(model, tmp_path / "image.pt", _features)


def test_a_model_that_is_called_a_trunk_is_another(tower: Callable[[str], Any]) -> None:
    state = tower("vit_tiny_patch16_224").visual.state_dict()
    assert layout_of(Source("image.pt", state)) == "open_clip"
    state["head.weight"] = state.pop("head.proj.weight")
    assert layout_of(Source("own.pt", state)) == "timm"


def test_a_single_file_of_another_tower(tower: Callable[[str], Any], tmp_path: Path) -> None:
    model, small = tower("vit_tiny_patch16_224"), TRUNKS["vit_tiny_patch16_224"][1]
    torch.save({"state_dict": model.state_dict()}, tmp_path / "epoch_9.pt")
    with pytest.raises(InputError, match="pass --model NAME"):
        from_source(str(tmp_path / "epoch_9.pt"), None, {}, None, {})
    options = {**small, "global_pool": "avg", "fc_norm": False}
    read = from_source(str(tmp_path / "epoch_9.pt"), "vit_tiny_patch16_224", options, None, {})
    assert read.num_classes == 24


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_images_are_prepared_as_there(mode: str, randomized: Randomized, tmp_path: Path) -> None:
    told = {"mean": [0.1, 0.2, 0.3], "std": 0.4, "interpolation": "bilinear", "resize_mode": mode}
    place = _folder(randomized(CLIP(24, VISION, TEXT)), tmp_path, preprocess_cfg=told)
    spec = from_source(str(place), None, {}, None, {}).preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (57, 91, 3), dtype=np.uint8)
    expected: Any = image_transform(32, False, (0.1, 0.2, 0.3), (0.4, 0.4, 0.4), mode, "bilinear")
    image = Image.fromarray(pixels)
    assert torch.equal(model_input(image, spec), expected(image))


def test_padding_is_said(randomized: Randomized, tmp_path: Path, capfd: Any) -> None:
    told = {"resize_mode": "longest"}
    place = _folder(randomized(CLIP(24, VISION, TEXT)), tmp_path, preprocess_cfg=told)
    assert from_source(str(place), None, {}, None, {}).preprocess.crop_mode == "border"
    assert "mean colour" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"preprocess_cfg": {"resize_mode": "fit"}}, "resize_mode 'fit' of its open_clip_config"),
        ({"vision_cfg": {**VISION, "pool_type": "none"}}, "pool_type 'none' of its open_clip_"),
        ({"vision_cfg": [1]}, "vision_cfg of its open_clip_config.json is no JSON object"),
    ],
)
def test_what_cannot_be_had(
    config: dict[str, Any], message: str, randomized: Randomized, tmp_path: Path
) -> None:
    place = _folder(randomized(CLIP(24, VISION, TEXT)), tmp_path, **config)
    with pytest.raises(InputError, match=message):
        from_source(str(place), None, {}, None, {})


def test_pooling_with_attention_is_refused(randomized: Randomized, tmp_path: Path) -> None:
    vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2}
    place = _folder(randomized(CLIP(24, vision, TEXT)), tmp_path, vision_cfg=vision)
    with pytest.raises(InputError, match=r"open_clip, which has no attn_pool\."):
        from_source(str(place), None, {}, None, {})
