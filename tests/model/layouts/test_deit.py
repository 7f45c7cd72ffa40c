"""DeiT of Facebook Research, whose names are those of timm, and DeiT III."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from helpers.layouts import outputs
from vitcompress.model.architecture import from_source

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
    read = agree(model, tmp_path / NAMES[name], outputs)
    assert (read.architecture.timm, read.preprocess.crop_pct) == (name, 0.9)


@pytest.mark.parametrize(("size", "crop"), [(32, 0.9), (384, 1.0)])
def test_the_third(
    size: int, crop: float, randomized: Callable[[nn.Module], Any], tmp_path: Path
) -> None:
    small = {"img_size": size, "patch_size": 16, "embed_dim": 128, "depth": 2, "num_heads": 2}
    model = randomized(timm.create_model("deit3_base_patch16_224", num_classes=5, **small))
    state = {
        re.sub(r"ls([12])\.gamma", r"gamma_\1", key): tensor
        for key, tensor in model.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "deit_3_base_224_1k.pth")
    read = from_source(str(tmp_path / "deit_3_base_224_1k.pth"), None, {}, None, {})
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = read.module(pixels), model(pixels)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (read.preprocess.input_size, read.preprocess.crop_pct) == ((size, size), crop)
