"""ViT of torchvision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from helpers.layouts import outputs
from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source


@pytest.fixture
def model(randomized: Callable[[nn.Module], Any]) -> Any:
    return randomized(VisionTransformer(32, 8, 2, 2, 128, 96, num_classes=5))


def test_a_classifier(model: Any, agree: Any, tmp_path: Path, capfd: Any) -> None:
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    read = agree(model, tmp_path / "vit.pth", outputs)
    found = read.preprocess
    assert (found.input_size, found.crop_pct, found.interpolation) == ((32, 32), 0.875, "bilinear")
    assert found.mean == (0.485, 0.456, 0.406)
    assert "2 heads" in capfd.readouterr().err


def test_names_of_its_first_versions(model: Any, agree: Any, tmp_path: Path) -> None:
    names = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    state = {}
    for key, tensor in model.state_dict().items():
        for new, old in names.items():
            key = key.replace(new, old)
        state[key] = tensor
    torch.save({"model": state}, tmp_path / "vit.pth")
    agree(model, tmp_path / "vit.pth", outputs)


def test_what_is_missing_is_named(model: Any, tmp_path: Path) -> None:
    state = model.state_dict()
    del state["encoder.layers.encoder_layer_0.mlp.0.weight"]
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(InputError, match=r"blocks\.0\.mlp\.fc1\.weight is missing"):
        from_source(str(tmp_path / "vit.pth"), None, {}, None, {})
