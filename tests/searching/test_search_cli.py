"""Searches at the command line, on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import nn

from helpers.cli import Call
from vitcompress import pipeline
from vitcompress.measure.runtime import time_in_turns
from vitcompress.recipe import Recipe
from vitcompress.report.model import Report
from vitcompress.searching.candidates import Candidate, Workbench
from vitcompress.searching.search import BEST, FOUND, PAGE, STUDY
from vitcompress.searching.space import Combination

OPTIONS = {"img_size": 48, "patch_size": 12, "embed_dim": 64, "depth": 2, "num_heads": 2}
RECIPE = f"""
model: {{name: vit_tiny_patch16_224, options: {json.dumps(OPTIONS)}}}
data:
  {{calibration: "example:glyphs/calibration", evaluation: "example:glyphs/evaluation",
   mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], crop_pct: 1.0, images: 8}}
stages:
  - {{name: tail, type: tail}}
  - {{name: prune, type: prune, budget: {{macs: 0.9}}, saliency: magnitude, compensate: false,
     rotate: false}}
  - {{name: quant, type: quantize, layers: ["blocks.0.mlp.*"], rounding: nearest, residual: 0}}
search:
  images: 8
  choices:
    prune: [null, {{budget: {{macs: 0.8}}}}]
    quant: [{{bits: 8}}, {{bits: 3}}]
"""
SMALL = ("--limit", 16)
LIMIT = 0.02


@pytest.fixture
def asked(
    make_module: Callable[..., nn.Module],
    export_once: Callable[..., dict[str, int]],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Any, ...]:
    """A search over 4 candidates, but for its limits."""
    quick = partial(time_in_turns, seconds=0, runs=5)
    monkeypatch.setattr("vitcompress.searching.candidates.time_in_turns", quick)
    monkeypatch.setattr("vitcompress.searching.candidates.export_onnx", export_once)
    path = tmp_path / "model.safetensors"
    module = make_module("vit_tiny_patch16_224", **OPTIONS, num_classes=33)
    save_file(module.state_dict(), path)
    return ("search", path, "--recipe", recipe, "--out", tmp_path / "out", *SMALL)


def test_the_smallest_within_the_limits_is_found_and_written(
    call: Call, asked: tuple[Any, ...], tmp_path: Path
) -> None:
    out, asked = tmp_path / "out", (*asked, "--minimize", "bytes", "--max-kl", LIMIT, "--json")
    found = call(*asked, code=0).json
    tried = found["candidates"]
    assert len({(each["prune"], each["quant"]) for each in tried}) == len(tried) == 4
    allowed = [each for each in tried if each["lost_kl"] <= LIMIT]
    assert 0 < len(allowed) < 4
    cheapest = min(allowed, key=lambda each: each["bytes_ratio"])
    assert cheapest["kind"] == "the best"
    report = Report.read(out / BEST)
    bits = report.stages[-1].details.facts["average_bits"]
    assert f"bits {bits:g}" == cheapest["quant"]
    assert [stage.name for stage in report.stages[1:-1]] == (
        [] if cheapest["prune"] == "left out" else ["prune"]
    )
    ratio = report.final.bytes / report.baseline.bytes  # type: ignore[operator]
    assert ratio == pytest.approx(cheapest["bytes_ratio"], rel=0.02)  # and metadata
    assert {gate.name for gate in report.gates} == {"max.kl"}
    held = json.loads((out / FOUND).read_text())
    assert held["tried"][held["best"]]["choices"]["quant"] == cheapest["quant"]
    assert (out / PAGE).read_text().count("<circle") == 4

    # Again: nothing is left to do, and nothing is done twice.
    before = (out / BEST / "manifest.json").read_bytes()
    again = call(*asked, code=0)
    assert "every combination was measured" in again.told
    assert again.json["candidates"] == tried
    assert (out / BEST / "manifest.json").read_bytes() == before


def test_limits_that_nothing_holds_fail(call: Call, asked: tuple[Any, ...], tmp_path: Path) -> None:
    done = call(*asked, "--max-kl", 0, "--trials", 1, "--ci", "github", code=1)
    assert "\n::error title=vitcompress search::no candidate holds the limits" in done.stderr
    assert not (tmp_path / "out" / BEST).exists()


def test_the_best_is_built_once_however_many_follow(
    call: Call, asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.searching.candidates._KEPT", 1)
    built, real = list[Combination](), Workbench.built

    def counted(bench: Workbench, combination: Combination) -> Candidate:
        built.append(combination)
        return real(bench, combination)

    monkeypatch.setattr(Workbench, "built", counted)
    call(*asked, "--minimize", "macs", "--max-kl", 10, code=0)
    assert len(built) == len(set(built)) == 4


def test_the_time_budget_holds_the_writing_of_the_best(
    call: Call, asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, real, clock = list[Path](), pipeline.run, time.monotonic

    def slow(recipe: Recipe, out: Path, *others: Any) -> Report:
        written.append(out)
        return real(recipe, out, *others)

    monkeypatch.setattr(pipeline, "run", slow)
    fake = SimpleNamespace(monotonic=lambda: clock() + 1000 * len(written))
    monkeypatch.setattr("vitcompress.searching.search.time", fake)
    call(*asked, "--minimize", "macs", "--max-kl", 10, "--time-budget", "1500s", code=0)
    assert len(written) == 1


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(asked: tuple[Any, ...], tmp_path: Path) -> None:
    out, asked = tmp_path / "out", (*asked, "--minimize", "macs", "--max-kl", 10, "--trials", 4)
    command = [sys.executable, "-m", "vitcompress", *map(str, asked)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 300
        while not (out / BEST).is_dir() and time.monotonic() < end:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
    assert (out / BEST / "manifest.json").is_file()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    tried = json.loads((out / FOUND).read_text())["tried"]
    assert len({json.dumps(each["choices"]) for each in tried}) == len(tried) == 4
    assert (out / STUDY).is_file()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "gates: nothing limits what may be lost; give --max-drop"),
        (("--max-kl", 1, "--minimize", "size"), "search.minimize"),
        (("--max-kl", 1, "--time-budget", "soon"), "--time-budget soon: is no time; write 90s"),
        (("--min-cosine", 0.9), "gates.min.cosine: the task classification has no cosine"),
        (("--set", "gates.max_drop.top5=1"), "gates.max_drop.top5: cannot be told of images"),
        (("--max-kl", 1, "--study", "nodb://x"), "--study nodb://x: cannot be used"),
        (("--max-kl", 1, "--set", "data.images=1", "--limit", 2), "too few"),
    ],
)
def test_bad_input_is_told_before_the_work(
    given: tuple[object, ...], told: str, call: Call, asked: tuple[Any, ...]
) -> None:
    assert told in call(*asked, *given, code=2).told
