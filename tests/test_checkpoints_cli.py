"""Checkpoints at the command line: several models in one file, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from vitcompress.cli import app

RECIPE = """
model:
  name: vit_tiny_patch16_224
  options: {patch_size: 8, embed_dim: 64, depth: 2, num_heads: 2}
stages:
  - {name: tail, type: tail}
"""


def plan(*arguments: object) -> tuple[int, list[str]]:
    """Exit code and the lines that `vitcompress plan` says."""
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    return result.exit_code, result.stderr.strip().splitlines()


def test_the_key_chooses_a_model(
    recipe: Path, make_module: Callable[..., nn.Module], tmp_path: Path
) -> None:
    content = {"student": make_module().state_dict(), "teacher": make_module().state_dict()}
    path = tmp_path / "x.pth"
    torch.save(content, path)
    code, lines = plan(recipe, path)
    assert code == 2
    assert lines == [
        f"error: {path}: holds several models: student, teacher;"
        " choose one by model.key, as --set model.key=teacher"
    ]
    assert plan(recipe, path, "--set", "model.key=teacher")[0] == 0
    recipe.write_text(RECIPE.replace("model:", "model:\n  key: student"))
    assert plan(recipe, path)[0] == 0


class Custom:
    pass


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (Custom(), "re-save only the state dict"),
        ({"model": nn.Linear(2, 2)}, "re-save only the state dict"),
        ({"epoch": 3}, "holds no state dict (keys: epoch)"),
        ({"head.weight": torch.ones(2, 2, dtype=torch.int8)}, "in floating point"),
        ({"a.lora_A.weight": torch.ones(2, 2)}, "merge_and_unload()"),
    ],
)
def test_a_refusal_is_one_line(content: Any, told: str, recipe: Path, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth.tar")
    code, lines = plan(recipe, tmp_path / "x.pth.tar")
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {tmp_path / 'x.pth.tar'}: ")
    assert told in lines[0]
