"""Checkpoints at the command line: several models in one file."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from helpers.cli import Call

RECIPE = """
model:
  name: vit_tiny_patch16_224
  options: {patch_size: 8, embed_dim: 64, depth: 2, num_heads: 2}
stages:
  - {name: tail, type: tail}
"""


def test_the_key_chooses_a_model(
    call: Call, recipe: Path, make_module: Callable[..., nn.Module], tmp_path: Path
) -> None:
    content = {"student": make_module().state_dict(), "teacher": make_module().state_dict()}
    path = tmp_path / "x.pth"
    torch.save(content, path)
    assert "choose one by model.key" in call("plan", recipe, path, code=2).error
    call("plan", recipe, path, "--set", "model.key=teacher")
    recipe.write_text(RECIPE.replace("model:", "model:\n  key: student"))
    call("plan", recipe, path)
