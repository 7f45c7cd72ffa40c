"""Sparsity from the command line, on the embedded example."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitcompress.cli import app

RECIPE = """
model: {checkpoint: "example:glyphs"}
data:
  calibration: "example:glyphs/calibration"
  evaluation: "example:glyphs/evaluation"
  images: 64
stages:
  - {name: sparse, type: sparsify, pattern: 2:4, layers: ["blocks.0.mlp.*"]}
"""


def call(command: str, recipe: Path, *options: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [command, str(recipe), *options])
    return result.exit_code, result.stdout, result.stderr


def test_a_run_warns_beyond_the_knee(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sets = ("pattern=16x16", "density=0.1")
    code, printed, said = call(
        *("run", recipe, "--out", str(out), "--limit", "33", "--json"),
        *(f"--set=stages.sparse.{each}" for each in sets),
    )
    assert code == 0, said
    report = json.loads(printed)
    details = report["stages"][0]["details"]
    layers = next(table for table in details["tables"] if table["name"] == "layers")
    assert [r["layer"] for r in layers["rows"]] == ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    assert details["facts"]["beyond_knee"]
    assert "beyond the knee" in " ".join(said.split())
    few, warning = report["warnings"]
    assert few.startswith("all figures rest on 33 images only")
    assert warning.startswith("stages.sparse.density: 0.1 lies beyond the knee")
    page = (out / "report.html").read_text()
    assert "beyond the knee" in page


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("pattern=2:5", "stages.sparse.pattern: 2:5 does not fit blocks.0.mlp.fc1: its"),
        ("pattern=16x16", "stages.sparse.density: 16x16 needs the share of weights that stays"),
        ("pattern=4:2", "stages.sparse.pattern=4:2: '4:2' is no pattern: give n:m such as 2:4"),
        ("density=0.5", "stages.sparse.density: 2:4 fixes the density; leave the key out"),
        ("layers=[blocks.99.*]", "stages.sparse.layers: 'blocks.99.*' matches no layer; nearest"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(recipe: Path, change: str, told: str) -> None:
    code, _, said = call("plan", recipe, f"--set=stages.sparse.{change}")
    assert code == 2
    assert told in " ".join(said.split())
    assert "Traceback" not in said
