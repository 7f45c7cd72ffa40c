"""Sparsity from the command line, on the embedded example."""

from pathlib import Path

import pytest

from helpers.cli import EXAMPLE, Call

RECIPE = f"""{EXAMPLE}
stages:
  - {{name: sparse, type: sparsify, pattern: 2:4, layers: ["blocks.0.mlp.*"]}}
"""


def test_a_run_warns_beyond_the_knee(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sets = ("pattern=16x16", "density=0.1")
    done = call(
        *("run", recipe, "--out", out, "--limit", 33, "--json"),
        *(f"--set=stages.sparse.{each}" for each in sets),
    )
    report = done.json
    details = report["stages"][0]["details"]
    layers = next(table for table in details["tables"] if table["name"] == "layers")
    assert [r["layer"] for r in layers["rows"]] == ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    assert details["facts"]["beyond_knee"]
    assert "beyond the knee" in done.told
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
def test_what_does_not_fit_is_told_in_one_line(
    change: str, told: str, call: Call, recipe: Path
) -> None:
    assert told in call("plan", recipe, f"--set=stages.sparse.{change}", code=2).error
