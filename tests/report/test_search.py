"""The page of a search."""

from vitcompress.details import Table
from vitcompress.report.search import SearchReport, Tried, render


def tried(latency: float, distance: float, within: bool, name: str = "bits <8>") -> Tried:
    costs = {"latency": latency, "bytes": 0.3, "macs": 0.9}
    return Tried({"quant": name}, costs, distance, {"max.kl": distance}, within)


REPORT = SearchReport(
    "a model",
    "latency",
    "kl",
    (
        tried(0.8, 0.01, True),
        tried(0.6, 0.02, True),
        tried(0.7, 0.05, False),
        tried(0.5, 0.1, False),
    ),
    1,
    Table.of("stages", [{"stage": "quant", "latency_ratio": 0.75}]),
)


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    assert REPORT.front == {0, 1, 3}
    assert [REPORT.kind(number) for number in range(4)] == ["front", "best", "beyond", "front"]
    assert [row["latency_ratio"] for row in REPORT.candidates.rows] == [0.5, 0.6, 0.7, 0.8]


def test_every_candidate_is_drawn_and_named() -> None:
    page = render(REPORT)
    assert page.count("<circle") == 4
    assert page.count("bits &lt;8&gt;") >= 8  # in the chart and in the table
    assert "60% of the latency, of 4 tried" in page
    assert 'class="best" cx=' in page


def test_no_candidate_may_be_good_enough() -> None:
    report = SearchReport("a model", "bytes", "kl", REPORT.tried[2:], None, Table.of("stages", []))
    assert "None of 2 candidates holds the limits" in render(report)
