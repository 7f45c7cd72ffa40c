"""ViT, DeiT and ViTMAE as the transformers library writes them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.layouts import VIT, Randomized, in_names_old_and_new, logits
from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

DECODER: dict[str, Any] = {
    "mask_ratio": 0.0,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
}


def class_token(model: Any, pixels: Tensor) -> Tensor:
    found: Tensor = model(pixels).last_hidden_state[:, 0]
    return found


def unmasked_class_token(model: Any, pixels: Tensor) -> Tensor:
    return class_token(getattr(model, "vit", model), pixels)


MODELS = {
    "ViTForImageClassification": ("ViT", logits),
    "ViTModel": ("ViT", class_token),
    "DeiTForImageClassification": ("DeiT", logits),
    "DeiTForImageClassificationWithTeacher": ("DeiT", logits),
    "DeiTModel": ("DeiT", class_token),
    "ViTMAEForPreTraining": ("ViTMAE", unmasked_class_token),
    "ViTMAEModel": ("ViTMAE", class_token),
    "ViTMSNForImageClassification": ("ViTMSN", logits),
}


def made(name: str, **options: Any) -> Any:
    kind, _ = MODELS[name]
    more = DECODER if kind == "ViTMAE" else {}
    config = getattr(transformers, f"{kind}Config")(**VIT, **more, **options)
    return getattr(transformers, name)(config)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder(name: str, randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    more = {"qkv_bias": False, "hidden_act": "gelu_new"} if name == "ViTModel" else {}
    model = randomized(made(name, **more))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, MODELS[name][1])
    classifies = "ForImageClassification" in name
    assert read.task.name == ("classification" if classifies else "embedding")
    assert read.reading.layout == "transformers_vit"


@pytest.mark.parametrize("name", [name for name in MODELS if "MSN" not in name])
def test_a_single_file_in_old_names_and_new(
    name: str, randomized: Randomized, agree: Any, tmp_path: Path, capsys: Any
) -> None:
    model = randomized(made(name))
    for file in in_names_old_and_new(model, tmp_path):
        agree(model, file, MODELS[name][1])
        said = capsys.readouterr().err
        assert "2 heads, activation gelu" in said
        assert ("the decoder is left out" in said) == (name == "ViTMAEForPreTraining")


def test_a_folder_says_how_images_are_prepared(randomized: Randomized, tmp_path: Path) -> None:
    names = {0: "cat", 1: "dog", 2: "fox"}
    randomized(made("ViTForImageClassification", id2label=names)).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(
        tmp_path
    )
    read = from_source(str(tmp_path), None, {}, None, {})
    assert read.num_classes == 3
    assert (read.preprocess.crop_mode, read.preprocess.interpolation) == ("squash", "bicubic")
    assert read.preprocess.mean == (0.5, 0.5, 0.5)


def test_what_timm_has_anyway_is_not_described(randomized: Randomized, tmp_path: Path) -> None:
    like = {**VIT, "hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 192}
    size = {"image_size": 160, "patch_size": 16}
    config = transformers.ViTConfig(**like | size)
    model = randomized(transformers.ViTForImageClassification(config))
    model.save_pretrained(tmp_path)
    described = from_source(str(tmp_path), "test_vit", {}, None, {}).architecture
    assert described.options == {"num_classes": 2, "in_chans": 3}
    assert described.norm_eps == 1e-12
    model.config.layer_norm_eps = 1e-6
    model.config.save_pretrained(tmp_path)
    assert from_source(str(tmp_path), "test_vit", {}, None, {}).architecture.norm_eps is None
    model.config.num_attention_heads = 4
    model.config.save_pretrained(tmp_path)
    described = from_source(str(tmp_path), "test_vit", {}, None, {}).architecture
    assert described.options["num_heads"] == 4


def test_images_that_are_not_square(randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    config = transformers.ViTConfig(**{**VIT, "image_size": [16, 64]})
    model = randomized(transformers.ViTForImageClassification(config))
    model.save_pretrained(tmp_path)
    read = from_source(str(tmp_path), None, {}, None, {})
    assert read.preprocess.input_size == (16, 64)
    pixels = torch.randn(2, 3, 16, 64)
    torch.testing.assert_close(read.module(pixels), model(pixels).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("encoder.layer.0.adapter.weight", True), r"ViT, which has no encoder\.layer\.0\.adapter"),
        (("encoder.layer.0.attention.attention.key.weight", False), "lacks its query, key or val"),
        (("embeddings.patch_embeddings.projection.weight", False), r"patch_embed\.proj\.weight is"),
    ],
)
def test_what_cannot_be_mapped_is_named(
    change: tuple[str, bool], said: str, randomized: Randomized, tmp_path: Path
) -> None:
    randomized(made("ViTModel")).save_pretrained(tmp_path)
    tensors = load_file(file := tmp_path / "model.safetensors")
    key, added = change
    if added:
        tensors[key] = torch.zeros(3)
    else:
        del tensors[key]
    save_file(tensors, file)
    with pytest.raises(InputError, match=said):
        from_source(str(tmp_path), None, {}, None, {})
