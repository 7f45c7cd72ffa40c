"""`model_input` is timm's evaluation transform, and `Preprocess` refuses what it cannot prepare."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from timm.data import create_transform, resolve_data_config

from vitcompress.data.preprocess import Preprocess, model_input
from vitcompress.errors import InputError

CFG: dict[str, Any] = {
    "input_size": (3, 24, 24),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "url": "keys of no concern here are passed over",
}


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(4, 70), st.integers(4, 70)),
    target=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    crop_pct=st.sampled_from([0.7, 0.875, 0.9, 1.0]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"]),
    crop_mode=st.sampled_from([None, "center", "squash", "border"]),
    seed=st.integers(0, 9),
)
def test_prepare_is_timms_evaluation_transform(
    size: tuple[int, int],
    target: tuple[int, int],
    crop_pct: float,
    interpolation: str,
    crop_mode: str | None,
    seed: int,
) -> None:
    cfg = CFG | {
        "input_size": (3, *target),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "crop_mode": crop_mode,
    }
    image = noise(*size, seed=seed)
    expected = create_transform(**resolve_data_config({}, pretrained_cfg=cfg), is_training=False)
    got = model_input(image, Preprocess.from_timm(cfg))
    assert got.shape == (3, *target)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected(image))


def test_a_one_channel_model_gets_grey() -> None:
    cfg = {"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.25,), "crop_pct": 1.0}
    image = noise(16, 16)
    got = model_input(image, Preprocess.from_timm(cfg))
    grey = torch.from_numpy(np.asarray(image.convert("L")).copy()).float() / 255
    torch.testing.assert_close(got, ((grey - 0.5) / 0.25)[None])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "1", "P"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    spec = Preprocess.from_timm(CFG)
    image = noise(30, 20).convert(mode)
    assert torch.equal(model_input(image, spec), model_input(image.convert("RGB"), spec))


def test_a_transparent_palette_keeps_its_colours() -> None:
    spec = Preprocess.from_timm(CFG)
    image = noise(30, 20).convert("P")
    expected = model_input(image, spec)
    image.info["transparency"] = bytes(range(100))  # converting it directly would warn
    assert torch.equal(model_input(image, spec), expected)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    spec = Preprocess.from_timm(CFG, crop_pct=1.0)
    eight = noise(24, 24, channels=1)
    sixteen = Image.fromarray(np.asarray(eight).astype(np.uint16) * 257)
    assert sixteen.mode == "I;16"
    torch.testing.assert_close(model_input(sixteen, spec), model_input(eight, spec))


def test_pixels_without_a_known_range_are_refused() -> None:
    with pytest.raises(InputError, match="whose range is not known"):
        model_input(Image.new("I", (30, 30)), Preprocess.from_timm(CFG))


def test_timms_defaults_fill_an_empty_config() -> None:
    spec = Preprocess.from_timm({})
    expected = resolve_data_config({"in_chans": 3}, pretrained_cfg={})
    assert (spec.channels, *spec.input_size) == expected["input_size"]
    assert spec.mean == expected["mean"]
    assert spec.std == expected["std"]
    assert spec.crop_pct == expected["crop_pct"]
    assert spec.interpolation == expected["interpolation"]


def test_overrides_win_and_none_is_not_given() -> None:
    spec = Preprocess.from_timm(CFG, input_size=32, mean=[0.5] * 3, crop_pct=None)
    assert spec.input_size == (32, 32)
    assert spec.mean == (0.5, 0.5, 0.5)
    assert spec.std == CFG["std"]
    assert spec.crop_pct == 0.9


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"crop_mode": "random"}, "crop_mode"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"mean": (0.5,)}, r"data\.mean: has 1 number\(s\) for a model of 3"),
        ({"channels": 4}, r"data\.mean: is not known .* data\.std .* 4 number\(s\) each"),
        ({"channels": 4, "mean": (0.5,) * 4}, r"data\.std: is not known"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
        ({"std": (0.2, float("nan"), 0.2)}, "std.1"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"input_size": 0}, "input_size"),
        ({"input_size": (3, 224, 224)}, "input_size"),
        ({"crop": 0.9}, "crop"),
    ],
)
def test_impossible_values_are_told_in_one_line(overrides: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        Preprocess.from_timm(CFG, **overrides)
    assert "\n" not in str(caught.value)


def test_a_spec_survives_json_and_is_frozen() -> None:
    spec = Preprocess.from_timm(CFG)
    assert Preprocess.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError, match="frozen"):
        spec.crop_pct = 1.0


@pytest.mark.parametrize("module", ["preprocess", "images"])
def test_importing_does_not_import_torch(module: str) -> None:
    code = f"import vitcompress.data.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_words_say_all_that_a_stranger_needs() -> None:
    spec = Preprocess(
        input_size=(224, 200),
        mean=(0.5, 0.4, 0.3),
        std=(0.1, 0.2, 0.3),
        crop_pct=0.9,
        interpolation="bicubic",
    )
    assert spec.in_words() == (
        "take the image as RGB, 8 bits; resize to cover 248 × 222 pixels (height × width), with "
        "Pillow's bicubic filter, which is antialiased, in 8 bits; take the middle 224 × 200 (what "
        "lies outside is zeros); divide by 255; subtract [0.5, 0.4, 0.3] and divide by "
        "[0.1, 0.2, 0.3], by channel; float32 [images, 3, 224, 200]"
    )
    other = {"crop_mode": "squash", "interpolation": "nearest", "float_resize": True}
    told = spec.model_copy(update=other).in_words()
    assert "resize to 248 × 222 pixels (height × width), with Pillow's nearest filter, in f" in told
