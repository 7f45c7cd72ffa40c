"""DeiT of Facebook Research, whose names are those of timm, and DeiT III."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

NAMES = {
    "deit_tiny_patch16_224": "deit_tiny_patch16_224-a1311bcf.pth",
    "deit_tiny_distilled_patch16_224": "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
}


@pytest.mark.parametrize("name", NAMES)
def test_published_files(
    name: str, randomized: Callable[[nn.Module], Any], agree: Any, tmp_path: Path
) -> None:
    model = randomized(timm.create_model(name, img_size=32, num_classes=5))
    torch.save({"model": model.state_dict()}, tmp_path / NAMES[name])
    read = agree(model, tmp_path / NAMES[name], lambda m, x: m(x))
    assert (read.architecture.timm, read.preprocess.crop_pct) == (name, 0.9)


def test_the_third(randomized: Callable[[nn.Module], Any], agree: Any, tmp_path: Path) -> None:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    model = randomized(timm.create_model("deit3_base_patch16_224", num_classes=5, **small))
    state = {
        re.sub(r"ls([12])\.gamma", r"gamma_\1", key): tensor
        for key, tensor in model.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "deit_3_base_224_1k.pth")
    agree(model, tmp_path / "deit_3_base_224_1k.pth", lambda m, x: m(x))
