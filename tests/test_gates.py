"""A gate holds up to its limit and no further, and never for a figure that was not measured."""

from typing import Any

import pytest

from vitcompress import tasks
from vitcompress.errors import InputError
from vitcompress.gates import applying, gate_results, unlike
from vitcompress.recipe import load_recipe, packaged_recipes
from vitcompress.recipe_gates import Against, Gates
from vitcompress.report.model import GateResult, Metrics, Report

BASELINE = Metrics(top1=80.2, top5=95.0, map=63.0, knn=70.5, params=100, macs=1000, bytes=400)
FINAL = Metrics(
    top1=80.0,
    top5=95.5,
    agreement=97.5,
    map=61.5,
    knn=70.0,
    neighbours=92.5,
    cosine=0.98,
    cosine_p5=0.9,
    relative_error=0.04,
    kl=0.02,
    params=100,
    macs=900,
    bytes=101,
    speedup=2.5,
)


def gate(name: str, limit: float, baseline: Metrics = BASELINE, final: Metrics = FINAL) -> Any:
    kind, _, metric = name.partition(".")
    gates = Gates.model_validate({kind: {metric: limit}})
    (result,) = gate_results(gates, baseline, final)
    return result


@pytest.mark.parametrize(
    ("name", "value", "holds", "fails"),
    [
        ("max_drop.top1", 0.2, 0.3, 0.1),
        ("max_drop.top5", -0.5, 0.0, None),
        ("min.top1", 80.0, 79.9, 80.1),
        ("min.top5", 95.5, 95.4, 95.6),
        ("min.agreement", 97.5, 97, 98),
        ("min.speedup", 2.5, 2.4, 2.6),
        ("min.map", 61.5, 61.4, 61.6),
        ("min.knn", 70.0, 69.9, 70.1),
        ("min.neighbours", 92.5, 92, 93),
        ("min.cosine", 0.98, 0.97, 0.99),
        ("min.cosine_p5", 0.9, 0.89, 0.91),
        ("max_drop.map", 1.5, 2, 1),
        ("max_drop.knn", 0.5, 0.5, 0.4),
        ("max.relative_error", 0.04, 0.05, 0.03),
        ("max.kl", 0.02, 0.03, 0.019),
        ("max.bytes", 101, 102, 100),
        ("max_ratio.bytes", 0.2525, 0.26, 0.25),
        ("max_ratio.macs", 0.9, 1, 0.8),
        ("max_ratio.params", 1.0, 1, 0.99),
        ("max_ratio.latency", 0.4, 0.5, 0.39),
    ],
)
def test_under_at_and_over_the_limit(
    name: str, value: float, holds: float, fails: float | None
) -> None:
    result = gate(name, holds)
    assert (result.name, result.limit, result.passed) == (name, holds, True)
    assert result.value == pytest.approx(value)
    if value >= 0:
        assert gate(name, value).passed
    if fails is not None:
        assert not gate(name, fails).passed


@pytest.mark.parametrize(
    ("drop", "passed"), [(0.2, True), (0.2000001, True), (0.20001, False), (-3.0, True)]
)
def test_rounding_of_floats_fails_no_gate_but_one_image_does(drop: float, passed: bool) -> None:
    final = FINAL.model_copy(update={"top1": 80.2 - drop})
    assert gate("max_drop.top1", 0.2, final=final).passed is passed


def test_one_byte_too_many_is_too_many() -> None:
    final = Metrics(bytes=25_000_001)
    assert not gate("max.bytes", 25_000_000, final=final).passed


@pytest.mark.parametrize(
    "name",
    [
        "max_drop.top1",
        "max_drop.top5",
        "min.top1",
        "min.top5",
        "min.agreement",
        "min.cosine",
        "max_drop.knn",
        "min.speedup",
        "max.kl",
        "max.bytes",
        "max_ratio.bytes",
        "max_ratio.macs",
        "max_ratio.params",
        "max_ratio.latency",
    ],
)
def test_what_was_not_measured_does_not_hold(name: str) -> None:
    expected = GateResult(name=name, limit=1, value=None, passed=False)
    assert gate(name, 1, BASELINE, Metrics()) == expected
    if name.startswith(("max_drop", "max_ratio")) and name != "max_ratio.latency":
        assert gate(name, 1, Metrics(), FINAL) == expected


def test_a_limit_of_zero_is_a_limit() -> None:
    assert not gate("max_drop.top1", 0).passed
    assert gate("max_drop.top5", 0).passed


def test_there_is_one_result_a_limit_and_none_without() -> None:
    assert gate_results(Gates(), BASELINE, FINAL) == []
    gates = Gates.model_validate(
        {"max_ratio": {"bytes": 0.5}, "min": {"agreement": 97}, "max_drop": {"top5": 1, "top1": 1}}
    )
    names = [result.name for result in gate_results(gates, BASELINE, FINAL)]
    assert names == ["max_drop.top1", "max_drop.top5", "min.agreement", "max_ratio.bytes"]


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("classification", 9),
        ("embedding", 0),
        ("multi_label", 9),
        ("one_logit", 1),
        ("regression", 2),
    ],
)
def test_packaged_recipes_hold_any_task_to_the_dense_model(task: str, outputs: int) -> None:
    known = tasks.chosen(task, outputs)
    for name, path in packaged_recipes().items():
        recipe = load_recipe(path)
        if name == "quickstart" or recipe.task not in (None, task):  # of a model, a task of its own
            continue
        gates = recipe.gates
        left = {m for _, limits in applying(gates, known) for m, limit in limits if limit}
        assert left <= {*known.figures, "bytes", "macs", "latency"}
        if gates.min.agreement is not None:
            assert left & set(known.against_dense), name


def test_labels_and_lone_figures_are_never_passed_over() -> None:
    embedding = tasks.chosen("embedding", 0)
    for wrong in (
        {"min": {"agreement": 90}},
        {"min": {"agreement": 90}, "max_ratio": {"bytes": 1}},
        {"min": {"cosine": 0.9}, "max_drop": {"top1": 1}},
        {"min": {"cosine": 0.9, "top1": 80}},
    ):
        with pytest.raises(InputError, match="the task embedding has no"):
            applying(Gates.model_validate(wrong), embedding)
    both = Gates.model_validate({"min": {"cosine": 0.9, "agreement": 90, "speedup": 1}})
    assert applying(both, embedding) == Gates.model_validate({"min": {"cosine": 0.9, "speedup": 1}})


EARLIER = Report(
    model={},
    baseline=BASELINE,
    final=FINAL.model_copy(
        update={"top1": 80.4, "kl": 0.01, "bytes": 100, "speedup": 3.0, "cosine": 0.985}
    ),
)
CLASSES = tasks.chosen("classification", 9)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("top1", 0.4),
        ("agreement", 0.0),
        ("kl", 0.01),
        ("cosine", 0.005),
        ("bytes", 1.01),
        ("macs", 1.0),
        ("latency", 1.2),  # 1 / 2.5 of the baseline instead of 1 / 3
    ],
)
def test_against_an_earlier_run(metric: str, value: float) -> None:
    for limit, passed in ((value, True), (value * 0.99 - 0.001, False)):
        gates = Gates.model_construct(against=Against.model_construct(**{metric: limit}))
        (result,) = gate_results(gates, BASELINE, FINAL, EARLIER)
        assert (result.name, result.passed) == (f"against.{metric}", passed)
        assert result.value == pytest.approx(value)


def test_the_defaults_are_for_what_the_earlier_run_has() -> None:
    limits = dict(applying(Gates(), CLASSES, EARLIER).against)
    assert {m: limit for m, limit in limits.items() if limit is not None} == {
        "top1": 0.5,
        "agreement": 1.0,
        "bytes": 1.02,
        "latency": 1.1,
    }
    results = gate_results(applying(Gates(), CLASSES, EARLIER), BASELINE, Metrics(), EARLIER)
    assert not any(result.passed for result in results)
    own = Gates.model_validate({"against": {"kl": 0.1}})
    assert applying(own, CLASSES, EARLIER) == own
    assert applying(own, CLASSES) == Gates()


@pytest.mark.parametrize(
    ("task", "given", "earlier", "told"),
    [
        ("classification", {"cosine": 0.1}, EARLIER.final, "the task classification has no cosine"),
        ("embedding", {}, Metrics(top1=80, bytes=9), "no figure of the task embedding"),
        ("classification", {"top1": 1}, Metrics(agreement=9), "no top1, which gates.against.top1"),
    ],
)
def test_what_cannot_be_held_against_is_refused(
    task: str, given: dict[str, float], earlier: Metrics, told: str
) -> None:
    known = tasks.chosen(task, 0 if task == "embedding" else 9)
    report = EARLIER.model_copy(update={"final": earlier})
    with pytest.raises(InputError, match=told):
        applying(Gates.model_validate({"against": given}), known, report)


def test_other_images_are_told() -> None:
    assert unlike(EARLIER, BASELINE) == []
    assert unlike(EARLIER, BASELINE.model_copy(update={"top1": 80.3})) == []
    assert "knn of its" in unlike(EARLIER, BASELINE.model_copy(update={"knn": None}))[0]
    (line,) = unlike(EARLIER, BASELINE.model_copy(update={"images": 50, "top1": 70.0}))
    assert "images, top1 of its baseline differ" in line
