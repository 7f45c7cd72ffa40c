"""Checkpoints at the command line: several models in one file."""

from collections.abc import Callable
from pathlib import Path

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
    assert "choose one by model.key" in lines[-1]
    assert plan(recipe, path, "--set", "model.key=teacher")[0] == 0
    recipe.write_text(RECIPE.replace("model:", "model:\n  key: student"))
    assert plan(recipe, path)[0] == 0
