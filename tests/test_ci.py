"""What GitHub is told of a run, and gates against an earlier one."""

import json
import re
from pathlib import Path

import pytest

from helpers.cli import EXAMPLE, Call
from vitcompress.ci import annotation, annotations
from vitcompress.report.model import GateResult, Metrics, Report

RECIPE = f"{EXAMPLE}\nstages: [{{name: tail, type: tail}}]\n"


def test_an_annotation_is_one_line_that_only_says_what_it_should() -> None:
    told = annotation("error", "Gate failed: a,b", "50 % of\r\n::set-output name=x::y")
    assert told == "::error title=Gate failed%3A a%2Cb::50 %25 of%0D%0A::set-output name=x::y"


def test_passed_gates_are_no_annotations() -> None:
    gates = [
        GateResult(name="min.top1", limit=80, value=81, passed=True),
        GateResult(name="min.agreement", limit=99, value=98.5, passed=False),
    ]
    report = Report(
        model={}, baseline=Metrics(), final=Metrics(), gates=gates, warnings=["few images"]
    )
    assert list(annotations(report, "out/a")) == [
        "::error title=Gate failed%3A min.agreement of out/a::agreement is 98.5, at least 99 "
        "required",
        "::warning title=out/a::few images",
    ]


def test_gates_fail_loudly_on_github_and_against_an_earlier_run(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    given, first = ("run", recipe, "--limit", 40, "--json"), tmp_path / "first"
    failing = ("--set", "gates.max_ratio.bytes=0.01")
    done = call(*given, "--out", first, *failing, "--ci", "github", "--quiet", code=1)
    assert done.json["gates"][0]["name"] == "max_ratio.bytes"
    error, *warnings = done.stderr.splitlines()
    assert error.startswith("::error title=Gate failed%3A max_ratio.bytes::bytes is ")
    assert any(
        w.startswith("::warning title=vitcompress::all figures rest on 40") for w in warnings
    )
    assert summary.read_text() == "before\n" + (first / "report.md").read_text() + "\n"

    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    against = ("--against", first, "--set", "gates.against={agreement: 0.1, bytes: 0.5}")
    second = tmp_path / "second"
    done = call(*given, "--out", second, *against, code=1)
    assert re.search(r"stage 1/1: tail \(tail\), about [\d.]+ s left", done.stderr)
    names = {gate["name"]: gate["passed"] for gate in done.json["gates"]}
    assert names == {"against.agreement": True, "against.bytes": False}
    assert "✗ Size at most 0.5× of the earlier run 1×" in done.told
    assert "::error title=Gate failed%3A against.bytes::" in done.stderr
    for name in ("report.md", "report.html"):
        assert "Agreement at most 0.1 points below the earlier run" in (second / name).read_text()
    assert "bytes is 1 of the earlier run, allowed 0.5" in (second / "junit.xml").read_text()
    inputs = json.loads((second / "manifest.json").read_text())["inputs"]
    outputs = json.loads((first / "manifest.json").read_text())["outputs"]
    assert inputs["against"] == outputs["report.json"]

    call("compare", first, second)
    table = summary.read_text().partition(f"| Baseline | {first} | {second} |")[2]
    assert re.search(r"\n\| Size \|( [\d.]+ .B \|){3}\n", table)
    verdicts = "| Gates | – | ✗ Size at most 0.01× of the baseline | ✗ Size at most 0.5× of "
    assert f"{verdicts}the earlier run |\n" in table

    call("eval", first, "--evaluation", "example:glyphs/evaluation", "--limit", 16)
    last = summary.read_text().splitlines()[-2]
    assert re.fullmatch(f"`{first}` on `example:glyphs/evaluation`: Top-1 .*, Images 16", last)


def test_errors_are_annotations_of_every_command(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "::error" not in call("inspect", tmp_path / "gone", code=2).stderr
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    told = call("inspect", tmp_path / "gone", code=2).stderr.splitlines()[-1]
    assert told.startswith("::error title=vitcompress inspect::error: ")
    assert "::error" not in call("run", "gone", "--ci", "none", code=2).stderr


def test_a_summary_that_cannot_be_written_is_told(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "summary.md"))
    given = ("run", recipe, "--limit", 16, "--out", tmp_path / "out", "--ci", "github")
    told = call(*given, code=3).stderr
    assert "GITHUB_STEP_SUMMARY: " in told
    assert (tmp_path / "out" / "report.json").exists()
