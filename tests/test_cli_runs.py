"""Whole runs at the command line: what lies in the folder, and what is told of it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitcompress
from helpers.cli import EXAMPLE, Call
from vitcompress.errors import InputError, RunError
from vitcompress.export.onnx import export_onnx
from vitcompress.output import leaving_log

RECIPE = f"""{EXAMPLE}
stages:
  - {{name: tail, type: tail}}
  - {{name: quant, type: quantize, layers: ["blocks.0.*"]}}
"""
WHOLE = ("--set", 'stages.quant.layers=["blocks.*"]', "--set", "data.images=96")


def test_a_run_writes_the_whole_folder(
    call: Call,
    recipe: Path,
    tmp_path: Path,
    fresh_logits: Callable[[Path, torch.Tensor], torch.Tensor],
) -> None:
    out = tmp_path / "out"
    report = call("run", recipe, "--out", out, "--limit", 66, "--json", *WHOLE).json
    assert {f.name for f in out.iterdir()} == {
        "model.onnx",
        "predict.py",
        "predict.html",
        "model.safetensors",
        "config.json",
        "report.json",
        "report.md",
        "report.html",
        "junit.xml",
        "recipe.yaml",
        "manifest.json",
        "run.log",
    }
    log = (out / "run.log").read_text()
    assert "stage 2/2: quant (quantize)\n" in log
    assert "  activations: static\n" in log  # a detail
    assert "smaller and" in log  # the summary
    written = json.loads((out / "manifest.json").read_text())["outputs"]
    assert written["run.log"] == hashlib.sha256(log.encode()).hexdigest()
    beside = {"baseline": report["baseline"], "gates": report["gates"]}
    page = tmp_path / "compared.html"
    compared = call("compare", out, "--json", "--out", page).json
    assert compared == {str(out): {**report["final"], **beside}}
    assert "They do not." in page.read_text()
    assert report["changes"]["images"] == 66
    assert report["changes"]["changed"] == round(66 * (1 - report["final"]["agreement"] / 100))
    assert len(report["changes"]["shown"]) == report["changes"]["changed"]
    assert report["made"]["recipe"] == recipe.stem
    assert report["final"]["intervals"]["top1"]["images"] == 66
    assert report == json.loads((out / "report.json").read_text())
    assert report["final"]["agreement"] >= 95
    assert report["final"]["images"] == 66
    assert report["final"]["bytes"] == (out / "model.onnx").stat().st_size
    assert report["final"]["bytes"] < 0.4 * report["baseline"]["bytes"]
    assert report["baseline"]["speedup"] == 1.0
    assert [stage["name"] for stage in report["stages"]] == ["tail", "quant"]
    assert report["artifacts"][0]["parity"]["passed"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    planned = call("plan", recipe, *WHOLE, "--out", out, "--json").json
    took = [row["seconds"] for row in planned]
    assert took == [None, *(stage["seconds"] for stage in report["stages"])]
    assert 1e8 < report["environment"]["peak_memory_bytes"] < 1e11

    pixels = torch.linspace(-1, 1, 3 * 48 * 48).view(1, 3, 48, 48)
    assert torch.allclose(vitcompress.load(out)(pixels), fresh_logits(out, pixels), atol=1e-5)

    facts = call("inspect", out, "--json").json
    assert facts["quantized_layers"]
    assert facts["family"] == "plain"
    judged = ("--evaluation", "example:glyphs/evaluation", "--limit", 66)
    again = call("eval", out / "model.onnx", *judged, "--json").json
    assert again["top1"] == pytest.approx(report["final"]["top1"])
    assert call("bench", out, "--seconds", 0, "--json").json[str(out)]["p50_ms"] > 0


@pytest.mark.slow
def test_a_run_writes_the_same_bytes_again(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.pipeline.export_onnx", export_onnx)
    for name in ("once", "again"):
        call("run", recipe, "--out", tmp_path / name, "--limit", 66, *WHOLE)
    for file in ("model.onnx", "model.safetensors", "config.json", "recipe.yaml"):
        written = [(tmp_path / name / file).read_bytes() for name in ("once", "again")]
        assert written[0] == written[1]


# Those to judge on: others, or a part of these.
@pytest.mark.parametrize("wanted", [pytest.param(40, marks=pytest.mark.slow), 80])
def test_images_that_cannot_be_read_are_in_the_report(
    wanted: int, call: Call, recipe: Path, tmp_path: Path
) -> None:
    images, random = tmp_path / "🎉 𠮷 [/x]", np.random.default_rng(0)
    images.mkdir(parents=True)
    for number in range(80):
        picture = Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        picture.save(images / f"{number:02}.png")
    damaged = [f"{number:02}.png" for number in range(8)]
    for name in damaged:
        (images / name).write_text("no image")
    own = (
        "--calibration",
        images,
        "--set",
        "data.evaluation=null",
        "--set",
        f"data.images={wanted}",
    )
    out = tmp_path / "o[/x] caf\udce9"
    call("run", recipe, *own, "--set", "data.max_unreadable=0.3", "--out", out)
    told = json.loads((out / "report.json").read_text())["warnings"]
    skipped = [line.split(": ")[1] for line in told if " skipped: " in line]
    assert sorted(skipped) == [f"{name} skipped" for name in damaged]
    assert any(line.startswith("all figures rest on") for line in told)  # on fewer than 50


def test_a_failed_gate_ends_with_1_and_keeps_the_output(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recipe.write_text(EXAMPLE + "stages: [{name: tail, type: tail}]\n")
    settings = ("--set", "gates.max_ratio.bytes=0.01", "--set", "data.evaluation=null")
    done = call("run", recipe, "--out", out, "--limit", 40, "--json", *settings, code=1)
    assert "0.01" in done.told
    report = json.loads((out / "report.json").read_text())
    assert report == done.json
    gate = report["gates"][0]
    assert (gate["name"], gate["passed"]) == ("max_ratio.bytes", False)
    assert "<failure" in (out / "junit.xml").read_text()
    # Without labels there is no accuracy.
    assert report["final"]["top1"] is None
    assert report["final"]["agreement"] is not None
    assert report["final"]["kl"] is not None


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (InputError("x.png: is none"), 2, "error: x.png: is none; the log is "),
        (RunError("disk full"), 3, "error: disk full; the log is "),
        (ValueError("odd"), 3, "failed: ValueError: odd; the log is "),
    ],
)
def test_a_run_that_fails_on_its_way_leaves_its_log_alone(
    raised: BaseException,
    code: int,
    told: str,
    call: Call,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise raised

    monkeypatch.setattr("vitcompress.pipeline.export_onnx", fails)
    out, log = tmp_path / "made" / "out", tmp_path / "made" / "out.failed.log"
    done = call("run", recipe, "--out", out, "--limit", 16, code=code)
    assert f"{told}{log}" in done.told
    assert list(out.parent.iterdir()) == [log]
    assert "baseline: fp32 export" in log.read_text()
    assert "Traceback" in log.read_text()
    with leaving_log(out, out):
        pass  # all goes well
    assert not log.exists()


def test_what_is_wrong_before_the_work_leaves_nothing(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made" / "out"
    call("run", recipe, "--out", out, "--set", "gates.min.cosine=0.9", code=2)
    assert not out.parent.exists()


@pytest.mark.usefixtures("quick_runs")
def test_export_alone_is_a_float_model(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    judged = ("--evaluation", "example:glyphs/evaluation", "--limit", 16)
    call("export", "example:glyphs", *judged, "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert report["artifacts"][0]["parity"]["max_logit_difference"] < 1e-4
    assert report["final"]["agreement"] == 100.0
