"""Another image size than in training, from the command line to the report."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import nn

from helpers.cli import Call
from vitcompress.model.architecture import VitModel

RECIPE = "stages: []\n"


def test_a_run_says_what_another_size_costs(
    make_module: Callable[..., nn.Module],
    make_vit: Callable[..., VitModel],
    call: Call,
    recipe: Path,
    tmp_path: Path,
) -> None:
    described = make_vit().architecture
    save_file(make_module().state_dict(), tmp_path / "model.safetensors")
    drawn = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=drawn, labels=np.arange(20) % 10)
    options = [f"model.options.{k}={v}" for k, v in described.options.items()]
    settings = [f"--set={each}" for each in [*options, "data.input_size=16"]]
    given = [recipe, tmp_path / "model.safetensors", "--model", described.timm]
    given += ["--evaluation", tmp_path / "images.npz", "--out", tmp_path / "out", *settings]
    done = call("run", *given)
    report = json.loads((tmp_path / "out/report.json").read_text())
    facts = report["model"]["trained_size"]
    assert facts["input_size"] == [32, 32]
    assert 0.2 < facts["macs_ratio"] < 0.4  # 5 tokens of 17
    assert facts["macs_ratio"] * facts["macs"] == report["baseline"]["macs"]
    assert facts["resized"]["kl"] > 0
    assert facts["figures"]["top1"] >= 0
    (line,) = [w for w in report["warnings"] if w.startswith("images of 16×16 pixels")]
    assert "32×32 in training" in line
    assert line.endswith(" %, on 20 images")
    assert "Images" not in line
    assert line in done.told
