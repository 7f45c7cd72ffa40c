import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from vitcompress.details import Table
from vitcompress.errors import InputError
from vitcompress.report.model import Artifact, Details, GateResult, Interval, Metrics, Report

PICTURE = "data:image/png;base64,AA"  # that of the report


def test_json_round_trip(report: Report, failed: Report, empty: Report) -> None:
    for each in (report, failed, empty):
        assert Report.from_json(each.to_json()) == each


def test_json_has_the_promised_shape(report: Report) -> None:
    text = report.to_json()
    data = json.loads(text)
    assert text.endswith("}\n")
    assert text == report.to_json()
    assert list(data) == [
        "schema", "model", "baseline", "stages", "final", "artifacts", "gates", "environment",
        "warnings", "made", "changes",
    ]  # fmt: skip
    assert data["schema"] == 1
    assert set(data["stages"][0]) == {"name", "type", "seconds", "metrics", "details"}
    details = data["stages"][1]["details"]
    assert list(details) == ["facts", "tables", "galleries", "studies"]
    assert details["facts"] == {"score": "lrp", "group_size": None}
    (layers,) = details["tables"]
    assert layers["name"] == "layers"
    caption = "Squared error"
    charted = {"name": "output_error", "unit": "", "chart": True, "caption": caption}
    assert layers["columns"][-1] == charted
    assert layers["rows"][0]["bits"] == 8
    assert details["galleries"][0]["rows"] == [{"caption": "0.jpg", "sources": [PICTURE]}]
    assert details["studies"][0]["figures"]["top1"] == 80.5
    assert set(data["artifacts"][0]) == {"path", "bytes", "sha256", "parity"}
    assert set(data["gates"][0]) == {"name", "limit", "value", "passed"}
    assert set(data["final"]) == {
        "images", "top1", "top5", "map", "knn", "agreement", "kl", "relative_error", "cosine",
        "cosine_p5", "neighbours", "norm_ratio", "params", "macs", "bytes", "latency_ms", "speedup",
        "intervals",
    }  # fmt: skip
    assert data["final"]["latency_ms"] == {"p50": 11.2, "p90": 11.9, "p99": 13.4}
    assert set(data["final"]["intervals"]["top1"]) == {"low", "high", "images"}
    assert data["baseline"]["agreement"] is None
    assert data["stages"][0]["metrics"] is None


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 25.53, 36.62),
        (15, 148, 6.24, 16.05),
        (0, 20, 0.0, 16.11),
        (1, 29, 0.61, 17.18),
        (20, 20, 83.89, 100.0),
    ],
)
def test_intervals_are_wilsons(hits: int, images: int, low: float, high: float) -> None:
    found = Interval.of(100 * hits / images, images)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-3), pytest.approx(high, abs=5e-3))
    assert found.low <= 100 * hits / images <= found.high


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(bad: float, report: Report) -> None:
    with pytest.raises(ValidationError):
        Metrics(kl=bad)
    with pytest.raises(ValidationError):
        GateResult(name="min.agreement", limit=97, value=bad, passed=True)
    with pytest.raises(ValidationError, match=r"0\.output_error"):
        Table.of("layers", [{"output_error": bad}])
    with pytest.raises(ValidationError, match=r"facts\.density"):
        Details(facts={"density": bad})
    smuggled = report.model_copy(update={"final": Metrics.model_construct(kl=bad)})
    with pytest.raises(ValueError, match="JSON compliant"):
        smuggled.to_json()


def test_facts_become_plain_data() -> None:
    parity = {"widths": np.array([3, 2]), "error": np.float32(0.5), "pair": (1, "a"), 4: None}
    artifact = Artifact(path="p", bytes=1, sha256="", parity=parity)
    assert artifact.parity == {"widths": [3, 2], "error": 0.5, "pair": [1, "a"], "4": None}
    with pytest.raises(ValidationError, match="a is a object"):
        Artifact(path="p", bytes=1, sha256="", parity={"a": object()})
    with pytest.raises(ValidationError, match=r"facts\.a"):
        Details.model_validate({"facts": {"a": [1]}})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "JSON"),
        ('{"schema": 2}', "schema"),
        ('{"schema": 1, "model": {}, "baseline": {"top9": 1}, "final": {}}', "baseline.top9"),
        ('{"schema": 1, "model": {}, "baseline": {"kl": NaN}, "final": {}}', "baseline.kl"),
    ],
)
def test_a_bad_file_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        Report.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, 10**400])
def test_counts_that_nothing_has_are_refused(report: Report, value: int) -> None:
    told = report.to_json().replace('"bytes": 6174211', f'"bytes": {value}')
    with pytest.raises(InputError, match=r"not a report of schema 1: final\.bytes|bytes"):
        Report.from_json(told)
