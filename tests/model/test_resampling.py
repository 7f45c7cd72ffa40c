"""Another image size than that of the checkpoint, where it is asked for."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed

from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel, from_source
from vitcompress.model.checkpoint import load_model
from vitcompress.model.layouts import Converted

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
SWIN = {"patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "num_classes": 3}


def tensors(name: str, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(timm.create_model(name, **options).state_dict())


def test_positions_follow_the_size_that_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    state = tensors("vit_tiny_patch16_224", img_size=64, **VIT)
    options = {**VIT, "img_size": 32}
    model, spec = load_model(Converted("vit_tiny_patch16_224", state), options, source="large.pth")
    expected = resample_abs_pos_embed(state["pos_embed"], [4, 4], num_prefix_tokens=1)
    assert torch.equal(model.state_dict()["pos_embed"], expected)
    assert spec.options["img_size"] == 32
    told = "pos_embed resampled from [1, 65, 32] to [1, 17, 32], for images of 32×32 pixels"
    assert told in capsys.readouterr().err
    assert all(
        torch.equal(tensor, state[key])
        for key, tensor in model.state_dict().items()
        if key != "pos_embed"
    )


def test_windows_of_another_size_have_their_biases_resampled() -> None:
    name = "swin_tiny_patch4_window7_224"
    state = tensors(name, img_size=32, window_size=8, **SWIN)
    options = {**SWIN, "img_size": 16, "window_size": 4}
    model, _ = load_model(Converted(name, state), options, source="swin.pth")
    table = model.state_dict()["layers.0.blocks.0.attn.relative_position_bias_table"]
    assert table.shape == (49, 1)


def test_nothing_else_is_made_to_fit() -> None:
    state = tensors("vit_tiny_patch16_224", img_size=64, **VIT)
    narrow = {**VIT, "img_size": 32, "embed_dim": 16}
    with pytest.raises(InputError, match="does not fit"):
        load_model(Converted("vit_tiny_patch16_224", state), narrow, source="large.pth")


PLAIN = "vit_tiny_patch16_224"
SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}


def loaded(
    folder: Path, made: dict[str, Any], options: dict[str, Any], wanted: Any = None
) -> tuple[VitModel, torch.Tensor]:
    """A model of timm that was `made` so and is read as a recipe says; its positions as made."""
    file, state = folder / "model.safetensors", tensors(PLAIN, **SMALL, **made)
    save_file(state, file)
    given = {} if wanted is None else {"input_size": wanted}
    return from_source(str(file), PLAIN, {**SMALL, **options}, None, given), state["pos_embed"]


def test_another_size_of_images_is_asked_for_by_them(tmp_path: Path) -> None:
    model, made = loaded(tmp_path, {"img_size": 64, "patch_size": 8}, {"patch_size": 8}, 32)
    assert model.trained_size == (64, 64)
    assert model.preprocess.input_size == (32, 32)
    expected = resample_abs_pos_embed(made, [4, 4], [8, 8])
    assert torch.equal(model.module.state_dict()["pos_embed"], expected)


def test_a_square_that_nobody_named_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = loaded(tmp_path, {"img_size": 64, "patch_size": 8}, {"patch_size": 8})
    assert (model.trained_size, model.preprocess.input_size) == (None, (64, 64))
    assert "taken for images of 64×64 pixels" in capsys.readouterr().err


def test_what_a_recipe_says_wins_over_a_square(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"img_size": (32, 128), "patch_size": 8}
    model, positions = loaded(tmp_path, made, made)
    assert (model.trained_size, model.preprocess.input_size) == (None, (32, 128))
    assert torch.equal(model.module.state_dict()["pos_embed"], positions)
    model, _ = loaded(tmp_path, made, {"patch_size": 8}, (32, 128))
    assert model.preprocess.input_size == (32, 128)
    assert torch.equal(model.module.state_dict()["pos_embed"], positions)
    assert "taken for" not in capsys.readouterr().err
    model, _ = loaded(tmp_path, made, made, (64, 64))  # as many positions, in another order
    expected = resample_abs_pos_embed(positions, [8, 8], [4, 16])
    assert torch.equal(model.module.state_dict()["pos_embed"], expected)


def test_a_grid_that_is_no_square_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set model.options.img_size to \[height, width\]"):
        loaded(tmp_path, {"img_size": (24, 40), "patch_size": 8}, {"patch_size": 8}, 64)
    both = {"img_size": 48, "patch_size": 8}
    with pytest.raises(InputError, match=r"data\.input_size: 32×32 is not 48×48"):
        loaded(tmp_path, {"img_size": 64, "patch_size": 8}, both, 32)


def test_another_patch_is_made_of_the_same_stem(tmp_path: Path) -> None:
    made = {"img_size": 64, "patch_size": 8}
    model, positions = loaded(tmp_path, made, {"img_size": 64, "patch_size": 16})
    stem = tensors(PLAIN, **SMALL, **made)["patch_embed.proj.weight"]
    state = model.module.state_dict()
    resampled = resample_patch_embed(stem, [16, 16]).flatten(1)
    assert torch.equal(state["patch_embed.proj.weight"], resampled)
    assert torch.equal(state["pos_embed"], resample_abs_pos_embed(positions, [4, 4], [8, 8]))


def test_a_model_without_positions_takes_any_size(tmp_path: Path) -> None:
    sizes = {"dims": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_classes": 3}
    file = tmp_path / "model.safetensors"
    save_file(tensors("convnext_atto", **sizes), file)
    model = from_source(str(file), "convnext_atto", sizes, None, {"input_size": 64})
    assert model.preprocess.input_size == (64, 64)
    assert model.module(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
