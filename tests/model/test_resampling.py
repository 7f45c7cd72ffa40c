"""Another image size than that of the checkpoint, where it is asked for."""

from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from vitcompress.errors import InputError
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
    told = "pos_embed resampled from [1, 65, 32] to [1, 17, 32], for images of 32 pixels"
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
