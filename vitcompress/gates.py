"""Gates: what a recipe promises, held against what was measured."""

from collections.abc import Callable

from vitcompress.errors import InputError
from vitcompress.recipe import Gates
from vitcompress.report.model import GateResult, Metrics
from vitcompress.tasks import Task

# Above the rounding of figures in single precision, below what one image or one byte changes.
_NOISE = 1e-6


_OF_ANY_TASK = {"bytes", "macs", "params", "latency", "speedup"}


def check_gates(gates: Gates, task: Task) -> None:
    """Raise `InputError` where a limit is set for a figure that `task` does not have."""
    known = {*_OF_ANY_TASK, *task.figures}
    for kind, limits in gates:
        for metric, limit in limits:
            if limit is not None and metric not in known:
                raise InputError(
                    f"gates.{kind}.{metric}: the task {task.name} has no {metric}; its figures are "
                    f"{', '.join(task.figures)}"
                )


def gate_results(gates: Gates, baseline: Metrics, final: Metrics) -> list[GateResult]:
    """One result for each limit that is set, named such as `max_drop.top1`, in the recipe's order.

    A limit that is met exactly holds. One whose figure was not measured does not.
    """
    return [
        _result(kind, metric, limit, _VALUES[kind](metric, baseline, final))
        for kind, limits in gates
        for metric, limit in limits
        if limit is not None
    ]


def _result(kind: str, metric: str, limit: float, value: float | None) -> GateResult:
    excess = None if value is None else limit - value if kind == "min" else value - limit
    passed = excess is not None and excess <= _NOISE
    return GateResult(name=f"{kind}.{metric}", limit=limit, value=value, passed=passed)


def _figure(metric: str, baseline: Metrics, final: Metrics) -> float | None:
    value: float | None = getattr(final, metric)
    return value


def _drop(metric: str, baseline: Metrics, final: Metrics) -> float | None:
    """Percentage points that were lost."""
    before, after = getattr(baseline, metric), getattr(final, metric)
    return None if before is None or after is None else before - after


def _ratio(metric: str, baseline: Metrics, final: Metrics) -> float | None:
    """The share of the baseline; that of latency comes from timings taken in turns."""
    if metric == "latency":
        return 1 / final.speedup if final.speedup else None
    before, after = getattr(baseline, metric), getattr(final, metric)
    return after / before if before and after is not None else None


_VALUES: dict[str, Callable[[str, Metrics, Metrics], float | None]] = {
    "max_drop": _drop,
    "min": _figure,
    "max": _figure,
    "max_ratio": _ratio,
}
