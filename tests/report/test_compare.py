"""Runs side by side, as a page."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vitcompress.errors import InputError
from vitcompress.report import compare
from vitcompress.report.compare import Run, differing, read, render
from vitcompress.report.model import Report

RECIPE = """
data: {images: 256}
stages:
- {name: quant, type: quantize, bits: %s}
"""


@pytest.fixture
def run_of(report: Report, tmp_path: Path) -> Callable[..., Run]:
    def run_of(name: str, bits: str = "8", **final: float) -> Run:
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(RECIPE % bits)
        told = report.model_copy(update={"final": report.final.model_copy(update=final)})
        (tmp_path / name / "report.json").write_text(told.to_json())
        return read(tmp_path / name)

    return run_of


def test_recipes_are_told_where_they_differ(run_of: Callable[..., Run]) -> None:
    runs = {"a": run_of("a"), "b": run_of("b", "4"), "c": run_of("c", "{average: 5}")}
    assert dict(differing(runs)) == {
        "stages.quant.bits": ["8", "4", "–"],
        "stages.quant.bits.average": ["–", "–", "5"],
    }
    assert dict(differing({"a": runs["a"], "again": runs["a"]})) == {}


def test_the_front_is_of_those_that_none_beats(run_of: Callable[..., Run]) -> None:
    runs = {
        "out/fast-run": run_of("fast", speedup=4.0, top1=85.0),
        "out/good-run": run_of("good", speedup=2.0, top1=86.4),
        "out/beaten": run_of("beaten", speedup=1.5, top1=85.5),
    }
    page = render(runs)
    assert page.count('<circle class="front"') == 2 + 1  # by latency; of one size, the best
    assert page.count('<circle class="within"') == 1 + 2
    assert "Top-1, points lost" in page
    assert "out/<wbr>fast-<wbr>run" in page
    assert "do not compare" not in page
    assert set(compare.as_json(runs)["out/beaten"]) >= {"top1", "speedup", "baseline", "gates"}


def test_runs_of_other_models_are_not_compared_silently(
    run_of: Callable[..., Run], failed: Report
) -> None:
    page = render({"a": run_of("a"), "b": Run(failed, {})})
    assert "their figures do not compare" in page
    assert '<circle class="beyond"' in page  # by agreement, which both have
    assert "2 of 3 gates failed" in page


def test_a_recipe_that_cannot_be_read_is_named(run_of: Callable[..., Run], tmp_path: Path) -> None:
    run_of("a")
    (tmp_path / "a" / "recipe.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"recipe\.yaml:1: not YAML"):
        read(tmp_path / "a")
