"""Folders that timm writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

NAME = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 1,
    "num_heads": 2,
}


def test_its_own_words_win(tmp_path: Path) -> None:
    model = timm.create_model(NAME, num_classes=3, **SMALL)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    told = {"mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 0.75, "interpolation": "bilinear"}
    config = {
        "architecture": NAME,
        "pretrained_cfg": {**told, "tag": "mine", "input_size": [3, 32, 32]},
        "model_args": SMALL,
        "label_names": ["cat", "dog", "fox"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = from_source(str(tmp_path), None, {}, None, {}).preprocess
    found = read.model_dump(mode="json", include=set(told))
    assert found == told
    read = from_source(str(tmp_path), None, {}, None, {"mean": (0.3, 0.3, 0.3)}).preprocess
    assert (read.mean, read.std) == ((0.3, 0.3, 0.3), (0.2, 0.2, 0.2))


def test_the_name_in_the_config_goes_before_that_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    state = timm.create_model(NAME, **SMALL).state_dict()
    save_file(state, folder / "model.safetensors")
    options = SMALL
    assert from_source(str(folder), None, options, None, {}).architecture.timm == NAME
    (folder / "config.json").write_text(json.dumps({"architecture": "deit_tiny_patch16_224"}))
    found = from_source(str(folder), None, options, None, {}).architecture.timm
    assert found == "deit_tiny_patch16_224"
    for text, told in (("{", "JSON"), ("[]", "not a JSON object")):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=rf"config\.json: .*{told}"):
            from_source(str(folder), None, options, None, {})
