"""Pruning from the command line, on the embedded example."""

import json
from pathlib import Path

import pytest
from PIL import Image

from helpers.cli import EXAMPLE, Call

QUANTIZE = '  - {name: quant, type: quantize, layers: ["blocks.0.*"]}\n'
RECIPE = f"""{EXAMPLE}
stages:
  - {{name: tail, type: tail}}
  - {{name: narrow, type: prune, budget: {{macs: 0.5}}, multiple: 16}}
{QUANTIZE}gates: {{max_ratio: {{macs: 0.8}}}}
"""


def test_a_run_prunes_and_quantizes(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = call("run", recipe, "--out", out, "--limit", 66, "--json").json
    stage = report["stages"][1]
    dense = report["baseline"]["macs"]
    assert stage["metrics"]["macs"] <= 0.5 * dense
    assert stage["details"]["facts"]["held_back_kl_narrowed"] > 0
    structures, _ = stage["details"]["tables"]
    rows = structures["rows"]
    assert all(row["kept"] == row["after"] / row["before"] for row in rows)
    page = (out / "report.html").read_text()
    assert "blocks.0.query_key" in page
    config = json.loads((out / "config.json").read_text())
    described = config["architecture"]["blocks"]
    assert len(described) == len({row["structure"].split(".")[1] for row in rows})


def test_plan_and_sensitivity_know_the_stage(call: Call, recipe: Path) -> None:
    rows = call("plan", recipe, "--json").json
    assert rows[2]["macs"] <= 0.5 * rows[0]["macs"]
    recipe.write_text(RECIPE.replace(QUANTIZE, ""))
    table = call("sensitivity", recipe, "--limit", 33, "--json").json["narrow"]
    assert {row["structure"].split(".")[2] for row in table} == {"query_key", "value", "hidden"}
    assert table[0]["structure"].startswith("blocks.0.")


def test_labels_are_read_where_gradients_are_to_be_taken_for_them(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(RECIPE.replace(QUANTIZE, ""))
    wanted = ("--set", "stages.narrow.targets=labels", "--set", "stages.narrow.saliency=hessian")
    call("sensitivity", recipe, "--limit", 33, *wanted)
    loose = tmp_path / "loose"
    loose.mkdir()
    for i in range(9):
        Image.new("L", (32, 32), 20 * i).save(loose / f"{i}.png")
    wanted += ("--out", tmp_path / "out", "--calibration", loose)
    message = call("run", recipe, *wanted, code=2).error
    assert message.startswith("error: ")
    assert "0.png has no label; put images in one folder a class" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("budget.macs=0.01", "stages.narrow.budget.macs: 0.01 cannot be met"),
        ("budget={macs: 0.5, params: 0.5}", "give exactly one of macs, params, bytes and latency"),
        ("saliency=loudness", "saliency"),
        ("structures=[tails]", "structures"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    setting: str, message: str, call: Call, recipe: Path
) -> None:
    line = call("plan", recipe, "--set", f"stages.narrow.{setting}", code=2).error
    assert line.startswith("error: ")
    assert message in line
