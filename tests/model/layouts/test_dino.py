"""DINO and DINOv2, in the names of their repositories."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from helpers.checkpoints import State, prefixed
from helpers.layouts import Randomized, outputs

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 0,
}


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_dino_in_training(
    wrapper: str, randomized: Randomized, agree: Any, tmp_path: Path, capfd: Any
) -> None:
    model = randomized(timm.create_model("vit_small_patch16_224.dino", **SMALL))
    state = prefixed(model.state_dict(), f"{wrapper}backbone.")
    for key in ("mlp.0.weight", "mlp.0.bias", "last_layer.weight_g", "last_layer.weight_v"):
        state[f"{wrapper}head.{key}"] = torch.randn(4, 4)
    torch.save({"state_dict": state, "epoch": 9}, tmp_path / "checkpoint.pth")
    read = agree(model, tmp_path / "checkpoint.pth", outputs)
    assert read.task.name == "embedding"
    assert read.preprocess.mean == (0.485, 0.456, 0.406)
    told = capfd.readouterr().err
    assert "head of its training is left out" in told
    assert "2 heads" in told


def _published(state: State, registers: bool = False, gated: bool = False) -> State:
    """The tensors of timm's DINOv2 in the names of the original."""
    state = dict(state)
    width = state["cls_token"].shape[-1]
    state["mask_token"] = torch.randn(1, width)
    if registers:
        position = torch.randn(1, 1, width)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    if gated:
        names = {".fc1.": ".w12.", ".fc2.": ".w3."}
        for key in [key for key in state if ".mlp." in key]:
            new = next(key.replace(*pair) for pair in names.items() if pair[0] in key)
            state[new] = state.pop(key)
    return state


VARIANTS = {
    "plain": "vit_base_patch14_dinov2",
    "registers": "vit_base_patch14_reg4_dinov2",
    "gated": "vit_giant_patch14_dinov2",
    "gated, registers": "vit_giant_patch14_reg4_dinov2",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_dinov2(variant: str, randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    model = randomized(timm.create_model(VARIANTS[variant], **SMALL))
    state = _published(model.state_dict(), "registers" in variant, "gated" in variant)
    torch.save(state, tmp_path / "pretrain.pth")
    read = agree(model, tmp_path / "pretrain.pth", outputs)
    assert (read.preprocess.input_size, read.task.name) == ((32, 32), "embedding")


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_dinov2_in_chunks(
    prefix: str, randomized: Randomized, agree: Any, tmp_path: Path, capfd: Any
) -> None:
    model = randomized(timm.create_model("vit_base_patch14_dinov2", **SMALL))
    state = _published(model.state_dict())
    for key in [key for key in state if key.startswith("blocks.")]:
        chunk = int(key.split(".")[1]) // 2
        state[key.replace("blocks.", f"blocks.{chunk}.")] = state.pop(key)
    state = prefixed(state, prefix)
    if prefix:
        state |= {"dino_head.mlp.0.weight": torch.randn(4, 4), "dino_loss.center": torch.randn(1)}
    torch.save({"model": state}, tmp_path / "teacher_checkpoint.pth")
    agree(model, tmp_path / "teacher_checkpoint.pth", outputs)
    told = "heads of its training are left out" in capfd.readouterr().err
    assert told == bool(prefix)
