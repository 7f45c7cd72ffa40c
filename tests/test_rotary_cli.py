"""Rotary models from a checkpoint to a report, on the drawn images of the embedded example."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vitcompress
from helpers.cli import Call

NAME = "eva02_tiny_patch14_224"  # with gated MLPs
OPTIONS = {"img_size": 48, "patch_size": 12, "embed_dim": 64, "depth": 2, "num_heads": 2}
OPTIONS |= {"rope_type": "mixed"}  # learned angles
RECIPE = f"""
model: {{name: {NAME}, options: {json.dumps(OPTIONS)}}}
data:
  {{calibration: "example:glyphs/calibration", evaluation: "example:glyphs/evaluation",
   mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], crop_pct: 1.0, images: 64}}
stages:
  - {{name: narrow, type: prune, budget: {{macs: 0.9}}, multiple: 4}}
  - {{name: fewer, type: merge, method: fisher, schedule: constant, budget: {{macs: 0.7}}}}
  - {{name: quant, type: quantize, residual: 0}}
"""


@pytest.fixture
def checkpoint(make_module: Callable[..., nn.Module], tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(make_module(NAME, **OPTIONS, num_classes=33).state_dict(), path)
    return path


def test_a_run_prunes_merges_and_quantizes(
    call: Call, recipe: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = call("run", recipe, checkpoint, "--out", out, "--limit", 33, "--json").json
    assert report["final"]["macs"] <= 0.7 * report["baseline"]["macs"]
    assert all(artifact["parity"]["passed"] for artifact in report["artifacts"][:1])
    architecture = json.loads((out / "config.json").read_text())["architecture"]
    assert architecture["merging"]["kept"][-1] < 17
    assert len(architecture["blocks"]) == 2
    assert set(architecture["quantized"]) >= {"blocks.0.attn.qkv", "blocks.1.mlp.fc1"}
    assert vitcompress.load(out)(torch.randn(5, 3, 48, 48)).shape == (5, 33)


def test_a_plan_needs_no_images(call: Call, recipe: Path, checkpoint: Path) -> None:
    rows = call("plan", recipe, checkpoint, "--json").json
    assert rows[2]["macs"] <= 0.7 * rows[0]["macs"]
