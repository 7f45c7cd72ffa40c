"""ViT as the transformers library writes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}
Randomized = Callable[[nn.Module], Any]


def test_a_classifier(randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    names = {0: "cat", 1: "dog", 2: "fox"}
    model = randomized(ViTForImageClassification(ViTConfig(**CONFIG, id2label=names)))
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(tmp_path)
    read = agree(model, tmp_path, lambda m, x: m(x).logits)
    assert read.task.name == "classification"
    assert (read.preprocess.crop_mode, read.preprocess.interpolation) == ("squash", "bicubic")
    assert read.preprocess.mean == (0.5, 0.5, 0.5)


def test_without_a_head(randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    model = randomized(ViTModel(ViTConfig(**CONFIG, qkv_bias=False, hidden_act="gelu_new")))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, lambda m, x: m(x).last_hidden_state[:, 0])
    assert read.task.name == "embedding"


def test_a_single_file(randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    model = randomized(ViTForImageClassification(ViTConfig(**CONFIG)))
    model.save_pretrained(tmp_path)
    file = tmp_path / "best.safetensors"
    (tmp_path / "model.safetensors").rename(file)
    agree(model, file, lambda m, x: m(x).logits)


def test_unknown_keys_are_named(randomized: Randomized, tmp_path: Path) -> None:
    randomized(ViTModel(ViTConfig(**CONFIG))).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.0.adapter.weight"] = tensors["layernorm.weight"].clone()
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"ViT, which has no encoder\.layer\.0\.adapter\.weight"):
        from_source(str(tmp_path), None, {}, None, {})
