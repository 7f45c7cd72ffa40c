"""ConvNeXt and ConvNeXt V2 as the transformers library writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
)

from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

CONFIG: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "first": (ConvNextConfig, ConvNextForImageClassification, ConvNextModel),
    "second": (ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model),
}
Randomized = Callable[[nn.Module], Any]
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_a_classifier(kind: str, randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    config, classifier, _ = KINDS[kind]
    names = {0: "cat", 1: "dog", 2: "fox"}
    model = randomized(classifier(config(**CONFIG, id2label=names, hidden_act="gelu_new")))
    model.save_pretrained(tmp_path)
    read = agree(model, tmp_path, lambda m, x: m(x).logits)
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
    read = agree(model, tmp_path, lambda m, x: m(x).pooler_output)
    assert read.task.name == "embedding"
    file = tmp_path / "best.safetensors"
    (tmp_path / "model.safetensors").rename(file)
    agree(model, file, lambda m, x: m(x).pooler_output)


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
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.stages.0.layers.0.adapter"] = tensors["layernorm.weight"].clone()
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"has no encoder\.stages\.0\.layers\.0\.adapter;"):
        from_source(str(tmp_path), None, {}, None, {})
    save_file({"encoder.other": tensors["layernorm.weight"].clone()}, file)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "convnext"}))
    with pytest.raises(InputError, match=r"has no encoder\.other"):
        from_source(str(tmp_path), None, {}, None, {})
