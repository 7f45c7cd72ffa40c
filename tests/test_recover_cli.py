"""Recovery by training from the command line, on the embedded example."""

import json
from pathlib import Path

import pytest

from helpers.cli import EXAMPLE, Call

RECIPE = f"""{EXAMPLE}
  recovery: "example:glyphs/calibration"
stages:
  - {{name: sparse, type: sparsify, pattern: 2:4}}
  - {{name: recover, type: recover, method: distill, steps: 8, batch: 8}}
"""


def test_a_run_trains_on_more_images_and_tells_of_it(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = call("run", recipe, "--out", out, "--limit", 48, "--json").json
    details = report["stages"][1]["details"]
    assert details["facts"]["views_of"] == 36 + 48
    (training,) = details["tables"]
    steps = [row["step"] for row in training["rows"]]
    assert steps == list(range(1, len(steps) + 1))
    manifest = json.loads((out / "manifest.json").read_text())
    assert "recovery" in json.dumps(manifest)
    assert "recovery: example:glyphs/calibration" in (out / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("stages.recover.optimizer=adamz", "stages.recover.optimizer: 'adamz' is none that timm"),
        ("stages.recover.method=affine", "steps: is for method: distill, and the method is affine"),
        ("data.recovery=gone", "gone: no such file or folder; check where the images"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line_before_the_work(
    change: str, told: str, call: Call, recipe: Path, tmp_path: Path
) -> None:
    refused = call("run", recipe, "--out", tmp_path / "out", f"--set={change}", code=2)
    assert told in refused.error
    assert not (tmp_path / "out").exists()


def test_a_plan_warns_of_a_stage_after_recovery(call: Call, recipe: Path) -> None:
    first, _, last = RECIPE.partition("stages:")[2].strip().partition("\n")
    recipe.write_text(f"{EXAMPLE}\nstages:\n{last}\n  {first}\n")
    assert "stages.sparse: comes after recover, and nothing" in call("plan", recipe).told


def test_more_images_that_nothing_is_trained_on_are_refused(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(recipe.read_text().partition("  - {name: recover")[0])
    refused = call("run", recipe, "--out", tmp_path / "out", code=2)
    assert "data.recovery: only a stage recover with method: distill trains on" in refused.error
