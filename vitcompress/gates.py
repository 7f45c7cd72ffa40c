"""Gates: what a recipe promises, held against what was measured."""

from collections.abc import Callable

from vitcompress import tasks
from vitcompress.errors import InputError
from vitcompress.recipe import Gates
from vitcompress.report.model import GateResult, Metrics
from vitcompress.tasks import Task

# Above the rounding of figures in single precision, below what one image or one byte changes.
_NOISE = 1e-6


_OF_ANY_TASK = {"bytes", "macs", "params", "latency", "speedup"}


def applying(gates: Gates, task: Task) -> Gates:
    """The limits that count for a model of `task`.

    A recipe for any task may limit how far the output may be from the dense model's in the figures
    of several: where the task has one of them, the others do not count. Raises `InputError` for a
    limit on any other figure that `task` does not have.
    """
    limits = [(kind, m) for kind, each in gates for m, limit in each if limit is not None]
    foreign = [each for each in limits if each[1] not in _OF_ANY_TASK | set(task.figures)]
    alike = any(metric in task.against_dense for _, metric in limits)
    others = tasks.figures_against_dense() if alike else frozenset()
    for kind, metric in foreign:
        if metric not in others:
            raise InputError(
                f"gates.{kind}.{metric}: the task {task.name} has no {metric}; its figures are "
                f"{', '.join(task.figures)}"
            )
    left_out = {kind: dict.fromkeys(m for k, m in foreign if k == kind) for kind, _ in gates}
    return gates.model_copy(
        update={kind: each.model_copy(update=left_out[kind]) for kind, each in gates}
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
