"""Swin and Swin-V2 of Microsoft and of torchvision."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import Swin_T_Weights, Swin_V2_B_Weights
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
    swin_t,
    swin_v2_b,
)

from helpers.layouts import Randomized, outputs
from vitcompress.data.preprocess import Preprocess, model_input
from vitcompress.model.layouts import Source, convert

FIRST, SECOND = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"


def _original(model: Any) -> dict[str, Tensor]:
    """The tensors of a timm model, and those that it computes, in Microsoft's names."""
    state = {**model.state_dict(), **dict(model.named_buffers())}
    found = {}
    for key, tensor in state.items():
        if key.endswith("k_bias") or tensor is None:
            continue
        key = re.sub(
            r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key
        )
        found[key.replace("head.fc.", "head.")] = tensor
    return found


ORIGINALS: dict[str, tuple[str, dict[str, Any]]] = {
    "first": (FIRST, {"window_size": 4, "num_classes": 5}),
    "larger images": (FIRST, {"window_size": 2, "num_classes": 5}),
    "second": (SECOND, {"window_size": 4, "num_classes": 5}),
    "other windows before": (SECOND, {"window_size": 4, "pretrained_window_sizes": (3, 2)}),
    "clipped windows": (SECOND, {"window_size": 8, "pretrained_window_sizes": (6, 3)}),
    "without a head": (FIRST, {"window_size": 4, "num_classes": 0}),
}


@pytest.mark.parametrize("variant", ORIGINALS)
def test_microsofts(variant: str, randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    name, options = ORIGINALS[variant]
    small = {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    model = randomized(timm.create_model(name, **small, **options))
    torch.save({"model": _original(model)}, tmp_path / "ckpt_epoch_9.pth")
    read = agree(model, tmp_path / "ckpt_epoch_9.pth", outputs)
    assert (read.preprocess.input_size, read.preprocess.crop_pct) == ((32, 32), 0.875)


def test_microsofts_without_what_is_derived(
    randomized: Randomized, agree: Any, tmp_path: Path, capfd: Any
) -> None:
    small = {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    model = randomized(timm.create_model(FIRST, **small, window_size=4))
    derived = re.compile(r".*(attn_mask|relative_position_index)")
    state = {k: t for k, t in _original(model).items() if not derived.fullmatch(k)}
    torch.save({"model": state}, tmp_path / "swin.pth")
    agree(model, tmp_path / "swin.pth", outputs)
    assert "images of 32 pixels" in capfd.readouterr().err


@pytest.mark.parametrize("version", [1, 2])
def test_torchvisions(version: int, randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    second = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    options: dict[str, Any] = second if version == 2 else {}
    model = SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5, **options)
    torch.save(randomized(model).state_dict(), tmp_path / "swin.pth")
    read = agree(model, tmp_path / "swin.pth", outputs)
    assert read.preprocess.input_size == (32, 32)


@pytest.mark.parametrize(
    ("make", "weights"), [(swin_t, Swin_T_Weights.DEFAULT), (swin_v2_b, Swin_V2_B_Weights.DEFAULT)]
)
def test_images_are_prepared_as_torchvision_does(
    make: Callable[[], nn.Module], weights: Any
) -> None:
    with torch.device("meta"):
        state = make().state_dict()
    tensors = {key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in state.items()}
    converted = convert(Source("swin.pth", tensors))
    spec = Preprocess(input_size=converted.options["img_size"], **converted.preprocess)
    pixels = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert torch.allclose(model_input(image, spec), weights.transforms()(image), atol=1e-5)
