"""DINOv3's ViT as the transformers library writes it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from helpers.layouts import VIT, Randomized, add_tensor, in_names_old_and_new, pooled
from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

CONFIG = {**VIT, "intermediate_size": 100}  # no multiple of 8
GATED: dict[str, Any] = {"use_gated_mlp": True, "hidden_act": "silu"}


@pytest.mark.parametrize(
    "options",
    [
        {"num_register_tokens": 4},
        {"num_register_tokens": 2, "rope_theta": 30.0, **GATED},
        {"query_bias": False, "value_bias": False, "num_attention_heads": 4},
    ],
)
def test_a_folder(
    options: dict[str, Any], randomized: Randomized, agree: Any, tmp_path: Path
) -> None:
    model = randomized(DINOv3ViTModel(DINOv3ViTConfig(**{**CONFIG, **options})))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, pooled)
    assert (read.task.name, read.anatomy.family) == ("embedding", "rotary")
    assert read.preprocess.input_size == (32, 32)


@pytest.mark.slow
def test_8_bits(randomized: Randomized, quantizes: Any, tmp_path: Path) -> None:
    config = DINOv3ViTConfig(**{**CONFIG, **GATED}, num_register_tokens=4)
    randomized(DINOv3ViTModel(config)).save_pretrained(tmp_path)
    quantizes(from_source(str(tmp_path), None, {}, None, {}))


def test_a_grid_that_is_not_square(randomized: Randomized, tmp_path: Path) -> None:
    options = {**CONFIG, "image_size": [32, 48], "num_register_tokens": 4}
    model = randomized(DINOv3ViTModel(DINOv3ViTConfig(**options)))
    model.save_pretrained(tmp_path)
    read = from_source(str(tmp_path), None, {}, None, {})
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(pixels).pooler_output
    assert (read.module(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_single_file_in_names_old_and_new(
    randomized: Randomized, tmp_path: Path, capsys: pytest.CaptureFixture[str], pixels: torch.Tensor
) -> None:
    model = randomized(DINOv3ViTModel(DINOv3ViTConfig(**CONFIG, num_register_tokens=4)))
    with torch.no_grad():
        expected = model(pixels).pooler_output
    for file in in_names_old_and_new(model, tmp_path):
        read = from_source(str(file), None, {"img_size": 32}, None, {})
        assert (read.module(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()
        said = "".join(capsys.readouterr())
        assert "num_heads 2 and img_size 224 and rope_temperature 100.0" in said


def test_refusals(randomized: Randomized, tmp_path: Path) -> None:
    config = DINOv3ViTConfig(**CONFIG, use_gated_mlp=True)
    randomized(DINOv3ViTModel(config)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"hidden_act 'gelu' .* only silu"):
        from_source(str(tmp_path), None, {}, None, {})
    add_tensor(tmp_path, "layer.0.attention.k_proj.bias")
    with pytest.raises(InputError, match=r"DINOv3, which has no layer\.0\.attention\.k_proj\.bias"):
        from_source(str(tmp_path), None, {}, None, {})
