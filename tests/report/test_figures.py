import pytest

from vitcompress.report import figures
from vitcompress.report.model import Changes, GateResult, Metrics, Report


def test_headline_tells_gain_and_loss(report: Report) -> None:
    assert figures.headline(report) == (
        "3.71× smaller and 2.65× faster; top-1 −0.2 points (86.4 → 86.2 %), "
        "98.6 % agreement with the dense model on 1,000 images."
    )


def test_headline_of_an_embedding(embedded: Report) -> None:
    assert figures.headline(embedded) == (
        "3.71× smaller and 2.65× faster; k-NN −1.5 points (62.5 → 61.0 %), "
        "mean cosine 0.999960 to the dense model on 1,000 images."
    )
    assert figures.gate_limit(embedded.gates[0]) == "Same nearest neighbour at least 95 %"


def test_figures_that_nobody_measured_are_not_shown(embedded: Report, empty: Report) -> None:
    keys = [f.key for f in figures.shown([embedded.baseline, embedded.final])]
    assert keys[-6:] == ["knn", "cosine", "cosine_p5", "neighbours", "norm_ratio", "images"]
    assert not {"top1", "agreement", "kl", "map"} & set(keys)
    assert figures.shown([empty.final]) == []


def test_headline_does_not_flatter(report: Report, empty: Report) -> None:
    worse = report.final.model_copy(update={"bytes": 45_826_048, "speedup": 0.5, "top1": None})
    told = figures.headline(report.model_copy(update={"final": worse}))
    assert told.startswith("2.00× larger and 2.00× slower; 98.6 % agreement")
    assert figures.headline(empty) == "Accuracy was not measured."


def test_figures_are_told_on_one_line_without_those_not_measured() -> None:
    measured = Metrics(images=500, top1=57.42, agreement=61.0, kl=0.5123)
    told = "Top-1 57.4 %, Agreement 61.0 %, KL (nats) 0.51, Images 500"
    assert figures.told(measured) == told


@pytest.mark.parametrize("speedup", [0.998, 1.0, 1.004])
def test_what_is_no_faster_is_not_called_so(speedup: float, report: Report) -> None:
    same = report.final.model_copy(update={"speedup": speedup})
    told = figures.headline(report.model_copy(update={"final": same}))
    assert told.startswith("3.71× smaller and 1.00× as fast; ")


def test_what_has_not_changed_is_told_so(report: Report) -> None:
    same = report.final.model_copy(update={"top1": report.baseline.top1})
    told = figures.headline(report.model_copy(update={"final": same}))
    assert "; top-1 unchanged at 86.4 %, 98.6 % agreement" in told


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((0, 0, 0), "None of the 1,000 answers changed."),
        ((9, None, None), "The answer changed on 9 of 1,000 images."),
        (
            (9, 4, 3),
            "The answer changed on 9 of 1,000 images: 4 no longer right, 3 newly right, "
            "2 wrong before and after.",
        ),
        ((4, 4, 0), "The answer changed on 4 of 1,000 images: 4 no longer right."),
    ],
)
def test_changes_in_words(counts: tuple[int, int | None, int | None], told: str) -> None:
    changed, lost, gained = counts
    found = Changes(
        images=1000, changed=changed, lost=lost, gained=gained, measure="kl", shown=(), classes=()
    )
    assert figures.changes_told(found) == told


def test_a_limit_within_the_interval_is_not_settled(report: Report) -> None:
    inside, outside = (
        GateResult(name="min.agreement", limit=limit, value=98.6, passed=True)
        for limit in (98.0, 97.0)
    )
    assert figures.gate_doubt(inside, report) == (
        "1,000 images do not settle it: the 95 % interval is 97.7–99.2 %"
    )
    assert figures.gate_doubt(outside, report) == ""
    assert figures.gate_doubt(report.gates[1], report) == ""  # of bytes


def test_speed_is_never_worked_out_from_separate_timings(report: Report) -> None:
    final = report.final.model_copy(update={"speedup": None})
    assert "faster" not in figures.headline(report.model_copy(update={"final": final}))


def test_change_knows_the_right_way(report: Report) -> None:
    trends = {
        key: figures.change(figures.BY_KEY[key], report.baseline, report.final).trend
        for key in ("bytes", "latency_ms.p99", "macs", "top1", "agreement")
    }
    assert trends == {
        "bytes": "better",
        "latency_ms.p99": "better",
        "macs": "same",
        "top1": "worse",
        "agreement": "same",
    }


def test_what_reads_as_no_change_is_none(report: Report) -> None:
    before = report.baseline.model_copy(update={"params": 10_000_000})
    after = report.baseline.model_copy(update={"params": 10_000_001})
    change = figures.change(figures.BY_KEY["params"], before, after)
    assert change == figures.FigureChange("0 %", "same")


@pytest.mark.parametrize(
    ("name", "limit", "value", "demand", "failure"),
    [
        (
            "max_drop.top1",
            1.0,
            1.9,
            "Top-1 may drop by at most 1 point",
            "top1 dropped 1.9, allowed 1",
        ),
        (
            "max_drop.top5",
            0.5,
            0.500001,
            "Top-5 may drop by at most 0.5 points",
            "top5 dropped 0.500001, allowed 0.5",
        ),
        (
            "max_ratio.bytes",
            0.4,
            0.52,
            "Size at most 0.4× of the baseline",
            "bytes is 0.52 of the baseline, allowed 0.4",
        ),
        (
            "min.agreement",
            97,
            95.1,
            "Agreement at least 97 %",
            "agreement is 95.1, at least 97 required",
        ),
        ("max.kl", 0.01, 0.2, "KL (nats) at most 0.01", "kl is 0.2, allowed 0.01"),
        ("smoke", 1, 2, "smoke, limit 1", "smoke is 2, limit 1"),
    ],
)
def test_gates_in_words(name: str, limit: float, value: float, demand: str, failure: str) -> None:
    gate = GateResult(name=name, limit=limit, value=value, passed=False)
    assert figures.gate_limit(gate) == demand
    assert figures.gate_failure(gate) == failure


def test_verdict(report: Report, failed: Report, empty: Report) -> None:
    assert figures.verdict(report) == "All 2 gates passed"
    assert figures.verdict(failed) == "2 of 3 gates failed"
    assert figures.verdict(empty) == "No gates set"
