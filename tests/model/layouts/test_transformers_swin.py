"""Swin and Swin V2 as the transformers library writes them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2Model,
)

from helpers.layouts import Randomized, add_tensor, in_names_old_and_new, logits, pooled
from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

CONFIG: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 3],
    "num_heads": [2, 4],
    "window_size": 4,
}
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "first": (SwinConfig, SwinForImageClassification, SwinModel),
    "second": (Swinv2Config, Swinv2ForImageClassification, Swinv2Model),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_size": 2, "mlp_ratio": 2.5, "qkv_bias": False},
        {"patch_size": 2, "depths": [2, 2, 1], "num_heads": [1, 2, 4]},
    ],
)
def test_a_classifier(
    kind: str, options: dict[str, Any], randomized: Randomized, agree: Any, tmp_path: Path
) -> None:
    config, classifier, _ = KINDS[kind]
    names = {0: "cat", 1: "dog", 2: "fox"}
    model = randomized(classifier(config(**{**CONFIG, **options}, id2label=names)))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, logits)
    assert (read.task.name, read.anatomy.family) == ("classification", "windowed")


@kinds
def test_without_a_head(kind: str, randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    config, _, headless = KINDS[kind]
    model = randomized(headless(config(**CONFIG)))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, pooled)
    assert read.task.name == "embedding"


@pytest.mark.parametrize(
    "options",
    [
        {"window_size": 8},  # larger than the grid of the second stage
        {"pretrained_window_sizes": [2, 3]},
        {"window_size": 8, "pretrained_window_sizes": [6, 3], "hidden_act": "gelu_new"},
        {"window_size": 3, "depths": [1, 1]},
    ],
)
def test_windows_of_the_second(
    options: dict[str, Any], randomized: Randomized, agree: Any, tmp_path: Path
) -> None:
    config = Swinv2Config(**{**CONFIG, **options})
    model = randomized(Swinv2ForImageClassification(config))
    model.save_pretrained(tmp_path)
    agree(model, tmp_path, logits)


@kinds
def test_a_single_file_in_names_old_and_new(
    kind: str, randomized: Randomized, pixels: Tensor, tmp_path: Path, capsys: Any
) -> None:
    config, classifier, _ = KINDS[kind]
    model = randomized(classifier(config(**CONFIG)))
    old, new = in_names_old_and_new(model, tmp_path)
    # Earlier versions wrote it; of the second Swin it tells the size of a window.
    index = "encoder.layers.0.blocks.0.attention.self.relative_position_index"
    prefix = "swin." if kind == "first" else "swinv2."
    earlier = {prefix + index: torch.zeros(16, 16, dtype=torch.int64)}
    save_file(load_file(old) | earlier, old)
    with torch.no_grad():
        expected = model(pixels).logits
    sizes = {"window_size": 4, "img_size": 32}
    for file, options in ((old, {}), (new, {} if kind == "first" else sizes)):
        read = from_source(str(file), None, options, None, {})
        assert (read.module(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()
        said = "".join(capsys.readouterr())
        assert f"hence assumed: img_size {56 if options else 32}" in said
        assert ("--set model.options.window_size=…" in said) == (kind == "second")


@pytest.mark.slow
@kinds
def test_8_bits(kind: str, randomized: Randomized, quantizes: Any, tmp_path: Path) -> None:
    config, classifier, _ = KINDS[kind]
    randomized(classifier(config(**CONFIG))).save_pretrained(tmp_path)
    quantizes(from_source(str(tmp_path), None, {}, None, {}))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window_size": 3}, "8×8 patches has no whole windows of 3×3"),
        ({"image_size": [16, 32]}, "4×8 patches has no whole windows of 4×4"),
        ({"image_size": 30}, "image_size 30 is no whole patches of 4"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"use_absolute_embeddings": True}, r"has no embeddings\.position_embeddings;"),
        # Here the library itself fails at the first image.
        ({"window_size": 8}, "of another shape .*relative_position_bias_table"),
    ],
)
def test_refusals(
    options: dict[str, Any], told: str, randomized: Randomized, tmp_path: Path
) -> None:
    randomized(SwinModel(SwinConfig(**{**CONFIG, **options}))).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=told) as caught:
        from_source(str(tmp_path), None, {}, None, {})
    assert "\n" not in str(caught.value)


@kinds
def test_unknown_keys_are_named(kind: str, randomized: Randomized, tmp_path: Path) -> None:
    config, _, headless = KINDS[kind]
    randomized(headless(config(**CONFIG))).save_pretrained(tmp_path)
    add_tensor(tmp_path, "encoder.layers.0.adapter")
    with pytest.raises(InputError, match=r"Swin, which has no encoder\.layers\.0\.adapter;"):
        from_source(str(tmp_path), None, {}, None, {})
