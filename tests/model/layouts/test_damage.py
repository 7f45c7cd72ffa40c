"""Tensors that are missing, or of a shape that no model has."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import timm
import torch
from open_clip import CLIP
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)
from transformers import ViTConfig, ViTForImageClassification

from vitcompress.errors import InputError
from vitcompress.model.layouts import Source, convert

_SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1}


def _swin() -> nn.Module:
    second: dict[str, Any] = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer([4, 4], 16, [1, 2], [2, 4], [4, 4], **second)


def _clip() -> nn.Module:
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1}
    return CLIP(24, vision, {"width": 32, "heads": 2, "layers": 1, "vocab_size": 32})


def _transformers() -> dict[str, Tensor]:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8))
    with TemporaryDirectory() as folder:  # the names in files are not those in memory
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def _registers() -> dict[str, Tensor]:
    state = timm.create_model("vit_base_patch14_reg4_dinov2", num_heads=1, **_SMALL).state_dict()
    registers = state.pop("reg_token")
    return {**state, "register_tokens": registers, "mask_token": torch.ones(1, 64)}


def _decoded() -> dict[str, Tensor]:
    state = timm.create_model("vit_tiny_patch16_224", num_heads=1, **_SMALL).state_dict()
    return {**state, "decoder_embed.weight": torch.ones(2, 2)}


STATES: dict[str, Callable[[], Mapping[str, Tensor]]] = {
    "torchvision ViT": lambda: VisionTransformer(32, 8, 1, 1, 64, 96).state_dict(),
    "torchvision Swin": lambda: _swin().state_dict(),
    "open_clip": lambda: _clip().state_dict(),
    "transformers ViT": _transformers,
    "DINOv2": _registers,
    "MAE": _decoded,
}
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (3,), (0, 2), (0, 3, 8, 8), (8, 3, 0, 0), (1,) * 5)


@pytest.mark.parametrize("layout", STATES)
def test_only_input_errors_are_raised(layout: str) -> None:
    state = STATES[layout]()
    convert(Source("file", state))
    refused = 0
    for key in state:
        for shape in (None, *SHAPES):
            damaged = {name: tensor for name, tensor in state.items() if name != key}
            if shape is not None:
                damaged[key] = torch.zeros(shape)
            try:
                convert(Source("file", damaged))  # what it does not look at, loading does
            except InputError:
                refused += 1
    assert refused
