"""ConvNeXt and ConvNeXt V2 as the transformers library writes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
)

from helpers.layouts import WEIGHTS, Randomized, add_tensor, logits, pooled
from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

CONFIG: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "first": (ConvNextConfig, ConvNextForImageClassification, ConvNextModel),
    "second": (ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_a_classifier(kind: str, randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    config, classifier, _ = KINDS[kind]
    names = {0: "cat", 1: "dog", 2: "fox"}
    model = randomized(classifier(config(**CONFIG, id2label=names, hidden_act="gelu_new")))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, logits)
    assert (read.task.name, read.anatomy.family) == ("classification", "generic")


@pytest.mark.slow
def test_8_bits(randomized: Randomized, quantizes: Any, tmp_path: Path) -> None:
    randomized(ConvNextModel(ConvNextConfig(**CONFIG))).save_pretrained(tmp_path)
    quantizes(from_source(str(tmp_path), None, {}, None, {}))


@kinds
def test_without_a_head_and_a_single_file(
    kind: str, randomized: Randomized, agree: Any, tmp_path: Path
) -> None:
    config, _, headless = KINDS[kind]
    model = randomized(headless(config(**CONFIG)))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, pooled)
    assert read.task.name == "embedding"
    file = tmp_path / "best.safetensors"
    (tmp_path / "model.safetensors").rename(file)
    agree(model, file, pooled)


@pytest.mark.parametrize(("edge", "part", "mode"), [(224, 0.875, "center"), (384, 1, "squash")])
def test_small_images_are_cropped_and_others_are_not(
    edge: int, part: float, mode: str, tmp_path: Path
) -> None:
    ConvNextModel(ConvNextConfig(**CONFIG)).save_pretrained(tmp_path)
    processor = ConvNextImageProcessor(size={"shortest_edge": edge}, crop_pct=0.875)
    processor.save_pretrained(tmp_path)
    read = from_source(str(tmp_path), None, {}, None, {}).preprocess
    assert (read.input_size, read.crop_pct, read.crop_mode) == ((edge, edge), part, mode)


def test_refusals(randomized: Randomized, tmp_path: Path) -> None:
    ConvNextModel(ConvNextConfig(**CONFIG, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="a ConvNeXt with patches of 8"):
        from_source(str(tmp_path), None, {}, None, {})
    few = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    randomized(ConvNextModel(few)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="a ConvNeXt of 2 stages"):
        from_source(str(tmp_path), None, {}, None, {})
    add_tensor(tmp_path, "encoder.stages.0.layers.0.adapter")
    with pytest.raises(InputError, match=r"has no encoder\.stages\.0\.layers\.0\.adapter;"):
        from_source(str(tmp_path), None, {}, None, {})
    save_file({"encoder.other": torch.zeros(3)}, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "convnext"}))
    with pytest.raises(InputError, match=r"has no encoder\.other"):
        from_source(str(tmp_path), None, {}, None, {})
