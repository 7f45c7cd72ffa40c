"""Small models of other libraries, in the files that those write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Randomized = Callable[[nn.Module], Any]
WEIGHTS = "model.safetensors"
# A ViT in the words of the transformers library.
VIT: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}


def logits(model: Any, pixels: Tensor) -> Tensor:
    found: Tensor = model(pixels).logits
    return found


def pooled(model: Any, pixels: Tensor) -> Tensor:
    found: Tensor = model(pixels).pooler_output
    return found


def outputs(model: nn.Module, pixels: Tensor) -> Tensor:
    found: Tensor = model(pixels)
    return found


def in_names_old_and_new(model: Any, folder: Path) -> tuple[Path, Path]:
    """Single files of a model of transformers: in the names of its files, and in those of memory,
    which differ where the library has renamed its modules."""
    model.save_pretrained(folder)
    (folder / WEIGHTS).rename(old := folder / "best.safetensors")
    torch.save(model.state_dict(), new := folder / "best.pth")
    return old, new


def add_tensor(folder: Path, key: str) -> None:
    """Write one more tensor to the weights of a model that is saved there."""
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, key: torch.zeros(3)}, folder / WEIGHTS)
