"""Images are prepared as the processors of the transformers library prepare them."""

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
from vitcompress.model.layouts import Source, convert
from vitcompress.model.layouts._transformers import preprocess
from vitcompress.model.reading import read_source

TIMM = {"input_size": (3, 32, 32), "crop_pct": 0.9, "interpolation": "bilinear"}
SQUARE = {"height": 32, "width": 32}
PROCESSORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "squash": (hf.ViTImageProcessorPil, {"size": SQUARE}),
    "squash, not square": (hf.ViTImageProcessorPil, {"size": {"height": 24, "width": 40}}),
    "squash and crop": (hf.DeiTImageProcessorPil, {"size": {"height": 43, "width": 43}}),
    "shortest edge and crop": (hf.CLIPImageProcessorPil, {"size": {"shortest_edge": 32}}),
    "a larger edge": (hf.BitImageProcessorPil, {"size": {"shortest_edge": 37}}),
    "no normalisation": (hf.BeitImageProcessorPil, {"size": SQUARE, "do_normalize": False}),
    "no rescaling": (
        hf.ViTImageProcessorPil,
        {"size": SQUARE, "do_rescale": False, "image_mean": [128.0] * 3, "image_std": [64.0] * 3},
    ),
    "rescaled by 1/127.5": (
        hf.BeitImageProcessorPil,
        {"size": SQUARE, "rescale_factor": 1 / 127.5, "do_normalize": False},
    ),
    "with an offset": (
        hf.EfficientNetImageProcessorPil,
        {"size": SQUARE, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False},
    ),
    "a share to crop": (hf.ConvNextImageProcessorPil, {"size": {"shortest_edge": 32}}),
    "too large to be cropped": (hf.ConvNextImageProcessorPil, {"size": {"shortest_edge": 384}}),
    **{
        f"filter {number}": (hf.SiglipImageProcessorPil, {"size": SQUARE, "resample": number})
        for number in range(6)
    },
}


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def read(processor: Any) -> Preprocess:
    said = json.loads(processor.to_json_string())
    return Preprocess.from_timm(TIMM, **preprocess(Source("folder", {}, processor=said)))


def described(**said: Any) -> dict[str, Any]:
    given = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **said}
    return preprocess(Source("folder", {}, processor=given))


@pytest.mark.parametrize("name", PROCESSORS)
def test_as_its_processor(name: str) -> None:
    made, options = PROCESSORS[name]
    crop = {"crop_size": SQUARE} if hasattr(made, "crop_size") else {}
    processor = made(**crop, **options)
    spec = read(processor)
    for height, width in ((32, 32), (47, 61), (90, 37), (33, 35), (64, 129)):
        image = noise(height, width)
        expected = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
        found = model_input(image, spec)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_without_resizing() -> None:
    processor = hf.ViTImageProcessorPil(do_resize=False)
    spec = read(processor)
    expected = torch.as_tensor(processor(image := noise(32, 32), return_tensors="pt").pixel_values)
    torch.testing.assert_close(model_input(image, spec), expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("crop", range(150, 300, 7))
def test_the_size_before_the_crop_is_the_one_that_is_said(crop: int) -> None:
    for size in range(crop, crop + 90):
        share = described(size=size, crop_size=crop, do_center_crop=True)["crop_pct"]
        assert int(crop / share) == size


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("ViTFeatureExtractor", "squash"),
        ("DeiTFeatureExtractor", "squash"),
        ("CLIPFeatureExtractor", "center"),
        ("BitImageProcessorFast", "center"),
    ],
)
def test_one_number_is_a_square_or_the_shortest_edge(kind: str, mode: str) -> None:
    found = described(size=32, crop_size=32, feature_extractor_type=kind)
    assert found["crop_mode"] == mode
    assert found["input_size"] == (32, 32)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"size": 32, "image_mean": None}, "image_mean is None"),
        ({"size": 32, "image_std": ["a"]}, r"image_std is \['a'\]"),
        ({"size": 32, "rescale_factor": 0}, "rescale_factor is 0"),
        ({"size": 32, "resample": 6}, "resample is 6, no filter from 0 to 5"),
        ({"size": {"longest_edge": 32}}, "size is {'longest_edge': 32}, which has no counterpart"),
        ({"size": 32, "crop_size": 40}, r"\[40, 40\] pixels are cropped out of \[32, 32\]"),
        ({"size": 32, "crop_size": {"height": 32, "width": 20}}, r"\[32, 20\] pixels are cropped"),
        ({"do_resize": False, "crop_size": 32}, "cropped but not resized"),
    ],
)
def test_what_has_no_counterpart_is_refused(said: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=rf"^folder: in its preprocessor_config\.json .*{fault}"):
        described(**said)


def test_a_processor_saved_with_that_of_texts(tmp_path: Path) -> None:
    config = hf.CLIPVisionConfig(hidden_size=64, num_attention_heads=1, num_hidden_layers=1)
    hf.CLIPVisionModel(config).save_pretrained(tmp_path)
    size = '{"size": {"height": 224, "width": 224}, "image_mean": [0.1], "image_std": [0.2]}'
    (tmp_path / "processor_config.json").write_text(f'{{"image_processor": {size}}}')
    assert convert(read_source(tmp_path)).preprocess["mean"] == [0.1] * 3
