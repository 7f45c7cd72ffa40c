"""Photographs are prepared as the processors of the transformers library prepare them.

Those of its Pillow backend resize as it is done here; those of torchvision's own kernels do not.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from vitcompress.data.preprocess import Preprocess, model_input
from vitcompress.errors import InputError
from vitcompress.model.layouts import Source
from vitcompress.model.layouts._transformers import preprocess

PHOTOGRAPHS = Path(__file__).parents[4] / "shared" / "assets" / "imagenet1k" / "evaluation"
MODELS = ("ViT", "DeiT", "Beit", "Bit", "CLIP", "ConvNext", "Siglip")
ONE_LEVEL = 1 / 255
SQUASHED = {"size": {"height": 90, "width": 64}}


def synthetic() -> list[Image.Image]:
    """Edges over a smooth ground, in several sizes; resizing rings there, but not past black and
    white, where rounded numbers would be cut off after one direction and others after both."""
    found = []
    for height, width in ((320, 480), (500, 375), (224, 224), (150, 270)):
        y, x = np.mgrid[:height, :width]
        ground = np.stack([x / width, y / height, (x + y) / (width + height)], 2)
        edges = ((x // 17 + y // 23) % 2)[..., None] * np.array([0.9, -0.5, 0.3])
        values = 0.15 + 0.7 * (ground + edges + 0.5) / 2.4
        found.append(Image.fromarray((values * 255).astype(np.uint8)))
    return found


def photographs() -> list[Image.Image]:
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"needs the photographs in {PHOTOGRAPHS}")
    files = sorted(PHOTOGRAPHS.rglob("*.*"))
    return [Image.open(file).convert("RGB") for file in files[:: len(files) // 6]]


def farthest(processor: Any, images: list[Image.Image]) -> float:
    """The largest difference of a pixel, on the scale 0…1."""
    said = json.loads(processor.to_json_string())
    usual = {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bilinear"}
    spec = Preprocess.from_timm(usual, **preprocess(Source("folder", {}, processor=said)))
    std, worst = torch.tensor(spec.std)[:, None, None], 0.0
    for image in images:
        expected = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
        found = model_input(image, spec)
        assert found.shape == expected.shape
        worst = max(worst, float(((found - expected) * std).abs().max()))
    return worst


@pytest.mark.parametrize("images", [synthetic, photographs])
@pytest.mark.parametrize("name", MODELS)
def test_as_by_pillow(name: str, images: Any) -> None:
    assert farthest(getattr(hf, f"{name}ImageProcessorPil")(), images()) <= 1e-6


@pytest.mark.parametrize("images", [synthetic, photographs])
@pytest.mark.parametrize("name", MODELS)
def test_within_levels_of_torchvision(name: str, images: Any) -> None:
    """Kernels of whole numbers round otherwise: a level, or two where a filter overshoots."""
    levels = 1 if name == "ViT" else 2
    assert farthest(getattr(hf, f"{name}ImageProcessor")(), images()) <= 1.01 * levels * ONE_LEVEL


@pytest.mark.parametrize("images", [synthetic, photographs])
@pytest.mark.parametrize("options", [{}, {"resample": 3}, SQUASHED])
def test_as_dinov3_which_resizes_floats(options: dict[str, Any], images: Any) -> None:
    assert farthest(hf.DINOv3ViTImageProcessor(**options), images()) <= 3e-5


def test_patches_of_any_shape_are_refused() -> None:
    said = json.loads(hf.Siglip2ImageProcessor().to_json_string())
    with pytest.raises(InputError, match=r"^folder: .*\(NaFlex\).*give a checkpoint of one fixed"):
        preprocess(Source("folder", {}, processor=said))


def test_one_number_is_that_of_all_channels() -> None:
    said = {"size": 32, "image_mean": 0.4, "image_std": 0.2}
    found = preprocess(Source("folder", {}, {"num_channels": 4}, said))
    assert (found["mean"], found["std"]) == ([0.4] * 4, [0.2] * 4)
    bare = {"size": 32, "do_normalize": False}
    config = {"vision_config": {"num_channels": 2}}
    assert preprocess(Source("folder", {}, config, bare))["std"] == [1.0] * 2
