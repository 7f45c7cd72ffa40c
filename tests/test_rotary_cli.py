"""Rotary models from a checkpoint to a report, on the drawn images of the embedded example."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import vitcompress
from vitcompress.cli import app

NAME = "eva02_tiny_patch14_224"  # with gated MLPs
OPTIONS = {"img_size": 48, "patch_size": 12, "embed_dim": 64, "depth": 2, "num_heads": 2}
OPTIONS |= {"rope_type": "mixed"}  # learned angles
RECIPE = """
model: {checkpoint: PATH, name: eva02_tiny_patch14_224, options: OPTIONS}
data:
  {calibration: "example:glyphs/calibration", evaluation: "example:glyphs/evaluation",
   mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], crop_pct: 1.0}
stages:
  - {name: narrow, type: prune, budget: {macs: 0.9}, multiple: 4}
  - {name: fewer, type: merge, method: fisher, schedule: constant, budget: {macs: 0.7}}
  - {name: quant, type: quantize, residual: 0}
"""


@pytest.fixture
def recipe(make_module: Callable[..., nn.Module], tmp_path: Path) -> Path:
    module = make_module(NAME, **OPTIONS, num_classes=33)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    text = RECIPE.replace("PATH", str(tmp_path / "model.safetensors"))
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("OPTIONS", json.dumps(OPTIONS)))
    return path


def test_a_run_prunes_merges_and_quantizes(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["run", str(recipe), "--out", str(out), "--limit", "33", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["final"]["macs"] <= 0.7 * report["baseline"]["macs"]
    assert all(artifact["parity"]["passed"] for artifact in report["artifacts"][:1])
    architecture = json.loads((out / "config.json").read_text())["architecture"]
    assert architecture["merging"]["kept"][-1] < 17
    assert len(architecture["blocks"]) == 2
    assert set(architecture["quantized"]) >= {"blocks.0.attn.qkv", "blocks.1.mlp.fc1"}
    assert vitcompress.load(out)(torch.randn(5, 3, 48, 48)).shape == (5, 33)


def test_a_plan_needs_no_images(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(recipe), "--json"])
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert rows[2]["macs"] <= 0.7 * rows[0]["macs"]
