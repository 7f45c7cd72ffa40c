"""DINOv2 as the transformers library writes it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helpers.layouts import VIT, Randomized, add_tensor, in_names_old_and_new, logits, pooled
from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

CONFIG = {key: value for key, value in VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
KINDS = ["Dinov2", "Dinov2WithRegisters"]


def made(kind: str, model: str = "Model", **options: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(**{**CONFIG, **options})
    return getattr(transformers, f"{kind}{model}")(config)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder(
    kind: str, gated: bool, randomized: Randomized, agree: Any, tmp_path: Path
) -> None:
    model = randomized(made(kind, use_swiglu_ffn=gated))
    model.save_pretrained(tmp_path)
    assert agree(model, tmp_path, pooled).task.name == "embedding"


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_in_old_names_and_new(
    kind: str, gated: bool, randomized: Randomized, agree: Any, tmp_path: Path, capsys: Any
) -> None:
    model = randomized(made(kind, use_swiglu_ffn=gated))
    for file in in_names_old_and_new(model, tmp_path):
        agree(model, file, pooled)
        assert f"2 heads, activation {'silu' if gated else 'gelu'}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_another_size_than_it_was_trained_for(
    kind: str, randomized: Randomized, agree: Any, tmp_path: Path, capsys: Any
) -> None:
    model = randomized(made(kind, image_size=72))
    model.save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    transformers.BitImageProcessor(size={"shortest_edge": 36}, crop_size=size).save_pretrained(
        tmp_path
    )
    read = agree(model, tmp_path, pooled)
    assert read.preprocess.input_size == (32, 32)
    assert "pos_embed resampled" in capsys.readouterr().err
    trained = from_source(str(tmp_path), None, {"img_size": 72}, None, {"input_size": (72, 72)})
    pixels = torch.randn(1, 3, 72, 72)
    torch.testing.assert_close(trained.module(pixels), pooled(model, pixels), rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_of_class_token_and_patches(
    kind: str, randomized: Randomized, agree: Any, tmp_path: Path
) -> None:
    model = randomized(made(kind, "ForImageClassification", id2label={0: "a", 1: "b", 2: "c"}))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, logits)
    assert (read.task.name, read.class_names) == ("classification", ("a", "b", "c"))
    assert read.anatomy.select(("head",), "layers")


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_mapped_is_named(kind: str, randomized: Randomized, tmp_path: Path) -> None:
    randomized(made(kind)).save_pretrained(tmp_path)
    add_tensor(tmp_path, "encoder.layer.0.adapter.weight")
    with pytest.raises(InputError, match=r"DINOv2, which has no encoder\.layer\.0\.adapter"):
        from_source(str(tmp_path), None, {}, None, {})
