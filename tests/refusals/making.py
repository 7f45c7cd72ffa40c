"""How a user comes to be refused: what they bring, and the command that they type."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.pictures import png

NAME = "vit_tiny_patch16_224"
SIZES = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
SMALL = [f"--set=model.options.{key}={value}" for key, value in SIZES.items()]
SMALL += [f"--set=model.name={NAME}"]
RECIPE = f"""
model: {{checkpoint: x.pth, name: {NAME}, options: {json.dumps(SIZES)}}}
data: {{calibration: i.npz, evaluation: i.npz, images: 40}}
stages:
  - {{name: quant, type: quantize, layers: ["blocks.0.*"]}}
"""
BLACK = png(np.zeros((8, 8, 3), np.uint8))


class Row(NamedTuple):
    """`make`: what they bring, in an empty folder → arguments. `words`: those of the line."""

    make: Callable[[Path], list[Any]]
    words: tuple[str, ...]


def state(**options: Any) -> dict[str, Tensor]:
    model = timm.create_model(NAME, **{"img_size": 32, "num_classes": 3, **SIZES, **options})
    found: dict[str, Tensor] = model.state_dict()
    return found


def checkpoint(content: Callable[[], Any], file: str = "x.pth", *more: str) -> Callable[..., Any]:
    """`inspect` of a file with such content."""

    def make(home: Path) -> list[Any]:
        torch.save(content(), home / file)
        return ["inspect", home / file, *SMALL, *more]

    return make


def folder(config: dict[str, Any], tensors: dict[str, Tensor]) -> Callable[..., Any]:
    """`inspect` of a folder as transformers writes it."""

    def make(home: Path) -> list[Any]:
        (home / "config.json").write_text(json.dumps(config))
        save_file(tensors, home / "model.safetensors")
        return ["inspect", home]

    return make


def named(name: str, content: bytes = b"none", *command: Any) -> Callable[..., Any]:
    """`plan` with a file of this name as its checkpoint, or the `command` with it."""

    def make(home: Path) -> list[Any]:
        (home / name).write_bytes(content)
        return [*(command or ("plan", "vit-int8")), home / name]

    return make


def run(*arguments: Any, recipe: str = RECIPE) -> Callable[..., Any]:
    """`run` of a recipe that is right but for the `arguments`, in which HOME is the folder."""

    def make(home: Path) -> list[Any]:
        (home / "r.yaml").write_text(recipe)
        torch.save(state(), home / "x.pth")
        images = np.zeros((50, 8, 8, 3), np.uint8)
        np.savez(home / "i.npz", images=images, labels=np.arange(50) % 3)
        given = [str(each).replace("HOME", str(home)) for each in arguments]
        return ["run", home / "r.yaml", "--out", home / "out", *given]

    return make


def after(prepare: Callable[[Path], object], make: Callable[..., Any]) -> Callable[..., Any]:
    """`make` where something lies in the folder already."""

    def both(home: Path) -> list[Any]:
        prepare(home)
        arguments: list[Any] = make(home)
        return arguments

    return both


def pictures(home: Path, *classes: str) -> None:
    for name in classes:
        (home / "images" / name).mkdir(parents=True)
        (home / "images" / name / "1.png").write_bytes(BLACK)
