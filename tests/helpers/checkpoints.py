"""Checkpoints of a small model: written, read, and refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcompress.errors import InputError
from vitcompress.model.reading import read_source

NAME = "vit_tiny_patch16_224"
# Of the model of `state`; timm has other defaults for the name.
SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
State = dict[str, Tensor]


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def read(path: Path, key: str | None = None) -> State:
    return dict(read_source(path, key).tensors)


def assert_same(read: State, state: State) -> None:
    assert read.keys() == state.keys()
    for key, tensor in state.items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor), key


def refusal(path: Path, key: str | None = None) -> str:
    """The one line that reading `path` is refused with; it names the file."""
    with pytest.raises(InputError) as caught:
        read(path, key)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message
