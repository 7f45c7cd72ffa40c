"""How long is left is told from what was measured, or not at all."""

from pathlib import Path

from vitcompress.pace import PEAK, Pace, took
from vitcompress.recipe import Recipe
from vitcompress.report.model import Metrics, Report, StageReport

RECIPE = Recipe.model_validate(
    {"stages": [{"name": "tail", "type": "tail"}, {"name": "quant", "type": "quantize"}]}
)


def test_without_an_earlier_run_only_the_last_step_is_told() -> None:
    pace = Pace(last=12.0, known={})
    assert pace.left(["tail", "quant"]) is None
    assert pace.left([]) == 12.0


def test_an_earlier_run_tells_what_this_one_takes_at_its_own_speed() -> None:
    pace = Pace(last=5.0, known={"a": 10.0, "b": 20.0, "c": 2.0})
    assert pace.left(["a", "b", "c"]) == 37.0
    pace.taken["a"] = 20.0
    assert pace.left(["b", "c"]) == 2 * 22.0 + 5.0
    assert pace.left(["b", "new"]) is None


def test_seconds_are_those_of_the_same_stages_and_model(tmp_path: Path) -> None:
    stages = [
        StageReport(name="tail", type="tail", seconds=3.0),
        StageReport(name="quant", type="prune", seconds=9.0),
    ]
    report = Report(
        model={"name": "vit"},
        baseline=Metrics(),
        final=Metrics(),
        stages=stages,
        environment={PEAK: 9},
    )
    (tmp_path / "report.json").write_text(report.to_json())
    for run in (report, tmp_path):
        assert took(run, RECIPE, "vit") == ({"tail": 3.0}, 9)
        assert took(run, RECIPE, "swin") == ({}, None)
    assert took(tmp_path / "gone", RECIPE, "vit") == ({}, None)
