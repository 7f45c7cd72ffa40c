"""MAE, in the names of its repository."""

from pathlib import Path
from typing import Any

import timm
import torch

from helpers.layouts import Randomized, outputs

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 2,
    "num_heads": 2,
}


def test_pretrained(randomized: Randomized, agree: Any, tmp_path: Path, capfd: Any) -> None:
    model = randomized(timm.create_model("vit_base_patch16_224", num_classes=0, **SMALL))
    state = model.state_dict()
    keys = ("pos_embed", "embed.weight", "blocks.0.norm1.weight", "norm.weight", "pred.weight")
    state |= {f"decoder_{key}": torch.randn(3, 3) for key in keys}
    state["mask_token"] = torch.randn(1, 1, 64)
    torch.save({"model": state}, tmp_path / "mae.pth")
    read = agree(model, tmp_path / "mae.pth", outputs)
    assert (read.task.name, read.preprocess.mean) == ("embedding", (0.485, 0.456, 0.406))
    assert "decoder is left out" in capfd.readouterr().err


def test_fine_tuned(randomized: Randomized, agree: Any, tmp_path: Path, capfd: Any) -> None:
    options = {**SMALL, "global_pool": "avg", "num_classes": 5}
    model = randomized(timm.create_model("vit_base_patch16_224", **options))
    torch.save({"model": model.state_dict()}, tmp_path / "mae.pth")
    read = agree(model, tmp_path / "mae.pth", outputs)
    assert read.task.name == "classification"
    assert "left out" not in capfd.readouterr().err
