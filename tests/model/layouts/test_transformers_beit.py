"""BEiT and Data2VecVision as the transformers library writes them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
)

from helpers.layouts import VIT, Randomized, add_tensor, in_names_old_and_new, logits, pooled
from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

OWN: dict[str, Any] = {"use_relative_position_bias": True}
SHARED: dict[str, Any] = {"use_shared_relative_position_bias": True}
ABSOLUTE: dict[str, Any] = {"use_absolute_position_embeddings": True}


@pytest.mark.parametrize(
    "options",
    [
        OWN,
        {**SHARED, "use_mean_pooling": False},
        {**OWN, **SHARED, **ABSOLUTE, "use_mask_token": True},
        {**ABSOLUTE, "layer_scale_init_value": 0.0},
    ],
)
def test_a_classifier(
    options: dict[str, Any], randomized: Randomized, agree: Any, tmp_path: Path
) -> None:
    names = {0: "cat", 1: "dog", 2: "fox"}
    config = BeitConfig(**VIT, **options, id2label=names)
    model = randomized(BeitForImageClassification(config))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, logits)
    assert read.task.name == "classification"
    assert read.anatomy.family == "beit"


@pytest.mark.parametrize("mean", [True, False])
def test_without_a_head(mean: bool, randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    model = randomized(BeitModel(BeitConfig(**VIT, **OWN, use_mean_pooling=mean)))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, pooled)
    assert read.task.name == "embedding"


def test_the_head_over_visual_words_is_left_out(
    randomized: Randomized, agree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = randomized(BeitForMaskedImageModeling(BeitConfig(**VIT, **OWN, vocab_size=8)))
    model.save_pretrained(tmp_path)
    agree(model, tmp_path, lambda m, x: m.layernorm(m.beit(x).last_hidden_state)[:, 0])
    assert "the head over visual words is left out" in "".join(capsys.readouterr())


@pytest.mark.slow
def test_data2vec_at_8_bits(
    randomized: Randomized, agree: Any, quantizes: Any, tmp_path: Path
) -> None:
    config = Data2VecVisionConfig(**VIT, **OWN)
    model = randomized(Data2VecVisionForImageClassification(config))
    model.save_pretrained(tmp_path)
    quantizes(agree(model, tmp_path, logits))


def test_a_single_file_in_names_old_and_new(
    randomized: Randomized, agree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = randomized(BeitForImageClassification(BeitConfig(**VIT, **OWN, **SHARED)))
    old, new = in_names_old_and_new(model, tmp_path)
    assert not set(load_file(old)) >= set(model.state_dict())
    for file in (old, new):
        agree(model, file, logits)
    assert "no config.json" not in "".join(capsys.readouterr())


def test_what_a_single_file_does_not_tell_is_said(
    randomized: Randomized, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = randomized(BeitModel(BeitConfig(**VIT)))
    torch.save(model.state_dict(), tmp_path / "best.pt")
    from_source(str(tmp_path / "best.pt"), None, {"img_size": 32}, None, {})
    said = "".join(capsys.readouterr())
    assert "num_heads 2 and img_size 224" in said
    assert "--set model.options.num_heads=… --set model.options.img_size=…" in said


def test_refusals(randomized: Randomized, tmp_path: Path) -> None:
    randomized(BeitModel(BeitConfig(**VIT, hidden_act="relu"))).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"hidden_act 'relu' of its config\.json is not supp"):
        from_source(str(tmp_path), None, {}, None, {})
    add_tensor(tmp_path, key := "encoder.layer.0.attention.attention.key.bias")
    with pytest.raises(InputError, match=rf"BEiT, which has no {key}"):
        from_source(str(tmp_path), None, {}, None, {})
