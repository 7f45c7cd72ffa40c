"""A small report with every kind of thing in it, and the like of it."""

import pytest

from helpers.reports import full_report
from vitcompress.report.model import GateResult, Metrics, Report


@pytest.fixture
def report() -> Report:
    """Quantized, every figure measured, all gates passed."""
    return full_report()


@pytest.fixture
def failed(report: Report) -> Report:
    """No labels: top-1 is null, and the gate on it cannot hold; another gate is missed."""
    agreement = report.final.intervals["agreement"]
    unlabelled = {"top1": None, "top5": None, "intervals": {"agreement": agreement}}
    return report.model_copy(
        update={
            "baseline": report.baseline.model_copy(update={**unlabelled, "intervals": {}}),
            "final": report.final.model_copy(update=unlabelled),
            "gates": [
                GateResult(name="max_drop.top1", limit=1.0, value=None, passed=False),
                GateResult(name="min.agreement", limit=99.0, value=98.6, passed=False),
                GateResult(name="min.speedup", limit=1.5, value=2.652, passed=True),
            ],
        }
    )


@pytest.fixture
def embedded(report: Report) -> Report:
    """Of a model without a head."""
    unlike = {"top1": None, "top5": None, "agreement": None, "kl": None, "intervals": {}}
    alike = {"cosine": 0.99996, "cosine_p5": 0.91234, "neighbours": 96.4, "norm_ratio": 1.01}
    final = report.final.model_copy(update={**unlike, **alike, "knn": 61.0})
    baseline = report.baseline.model_copy(update={**unlike, "knn": 62.5})
    gate = GateResult(name="min.neighbours", limit=95.0, value=96.4, passed=True)
    return report.model_copy(
        update={"baseline": baseline, "stages": [], "final": final, "gates": [gate]}
    )


@pytest.fixture
def empty() -> Report:
    """Nothing was measured."""
    return Report(model={}, baseline=Metrics(), final=Metrics())
