"""Models of transformers for images of other channels than three."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SWIN: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
CONVNEXT: dict[str, Any] = {"hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1]}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ViT": (hf.ViTForImageClassification, hf.ViTConfig, SIZES),
    "BEiT": (hf.BeitForImageClassification, hf.BeitConfig, SIZES),
    "DINOv3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig, SIZES),
    "CLIP": (hf.CLIPVisionModel, hf.CLIPVisionConfig, SIZES),
    "Swin": (hf.SwinForImageClassification, hf.SwinConfig, SWIN),
    "ConvNeXt": (hf.ConvNextForImageClassification, hf.ConvNextConfig, CONVNEXT),
}


@pytest.mark.parametrize("name", MODELS)
def test_as_the_library(
    name: str, randomized: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    channels = 4
    made, config, sizes = MODELS[name]
    module: Any = randomized(made(config(num_channels=channels, **{"image_size": 32, **sizes})))
    module.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"data\.mean: is not known .* 4 number\(s\) each"):
        from_source(str(tmp_path), None, {}, None, {})
    numbers = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    read = from_source(str(tmp_path), None, {}, None, numbers)
    assert read.preprocess.channels == channels
    pixels = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = module(pixels)
        expected = outputs.logits if "logits" in outputs else outputs.pooler_output
        found = read.module(pixels)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
