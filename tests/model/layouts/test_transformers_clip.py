"""The vision towers of CLIP and SigLIP as the transformers library writes them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from helpers.layouts import VIT, Randomized, add_tensor, logits, pooled
from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def embeds(model: Any, pixels: Tensor) -> Tensor:
    found: Tensor = model(pixels).image_embeds
    return found


def features(model: Any, pixels: Tensor) -> Tensor:
    found: Tensor = model.get_image_features(pixels).pooler_output
    return found


def mean(model: Any, pixels: Tensor) -> Tensor:
    found: Tensor = model(pixels).last_hidden_state.mean(1)
    return found


OUTPUTS = {
    "CLIPVisionModel": pooled,
    "CLIPVisionModelWithProjection": embeds,
    "CLIPModel": features,
    "CLIPForImageClassification": logits,
    "SiglipVisionModel": pooled,
    "SiglipModel": features,
    "SiglipForImageClassification": logits,
}


def made(name: str, **options: Any) -> Any:
    kind = "CLIP" if name.startswith("CLIP") else "Siglip"
    if "VisionModel" in name:
        config = getattr(transformers, f"{kind}VisionConfig")(**VIT, **options)
    else:
        towers = {"vision_config": {**VIT, **options}, "text_config": TEXT}
        config = getattr(transformers, f"{kind}Config")(**towers, num_labels=3)
    return getattr(transformers, name)(config)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_folder(
    name: str, randomized: Randomized, agree: Any, tmp_path: Path, capsys: Any
) -> None:
    model = randomized(made(name, hidden_act="gelu", layer_norm_eps=1e-3))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, OUTPUTS[name])
    classifies = "Classification" in name
    assert read.task.name == ("classification" if classifies else "embedding")
    towers = name in ("CLIPModel", "SiglipModel")
    assert ("the text tower is left out" in capsys.readouterr().err) == towers


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_single_file_in_old_names_and_new(
    name: str, prefix: str, randomized: Randomized, agree: Any, tmp_path: Path, capsys: Any
) -> None:
    model = randomized(made(name))
    tensors = {
        (prefix + key if key.startswith(("embeddings.", "encoder.", "p", "head.")) else key): tensor
        for key, tensor in model.state_dict().items()
    }
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]  # of version 4
    torch.save(tensors, file := tmp_path / "best.pth")
    agree(model, file, OUTPUTS[name])
    act = "quick_gelu" if name.startswith("CLIP") else "gelu_tanh"
    assert f"2 heads, activation {act}" in capsys.readouterr().err


def test_without_a_pooling_head(
    randomized: Randomized, agree: Any, tmp_path: Path, capsys: Any
) -> None:
    model = randomized(made("SiglipVisionModel", vision_use_head=False))
    model.save_pretrained(tmp_path)
    agree(model, tmp_path, mean)
    assert "no pooling head: the mean of its patches" in capsys.readouterr().err


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_cannot_be_mapped_is_named(name: str, randomized: Randomized, tmp_path: Path) -> None:
    randomized(made(name)).save_pretrained(tmp_path)
    add_tensor(tmp_path, "encoder.layers.0.adapter.weight")
    with pytest.raises(InputError, match=r"which has no encoder\.layers\.0\.adapter"):
        from_source(str(tmp_path), None, {}, None, {})


def test_images_of_any_shape_are_refused(tmp_path: Path) -> None:
    config = {key: value for key, value in VIT.items() if key != "image_size"}
    model = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**config))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="NaFlex"):
        from_source(str(tmp_path), None, {}, None, {})
