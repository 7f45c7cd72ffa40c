"""Gates: what a recipe promises, held against what was measured."""

import math
from collections.abc import Callable

from vitcompress import tasks
from vitcompress.errors import InputError
from vitcompress.recipe_gates import Against, Gates, Maximum, MaxRatio
from vitcompress.report.model import GateResult, Metrics, Report
from vitcompress.tasks import Task
from vitcompress.terms import AGAINST

# Above the rounding of figures in single precision, below what one image or one byte changes.
_NOISE = 1e-6


_OF_ANY_TASK = {"bytes", "macs", "params", "latency", "speedup"}
_ALIKE = {
    **dict.fromkeys(("images", "params", "macs"), 0.0),
    **dict.fromkeys(("top1", "map", "knn"), 0.5),  # of one model, on another processor
}
_BEHIND = {"latency": "speedup"}  # the figure that a limit rests on, where it is another


def applying(gates: Gates, task: Task, earlier: Report | None = None) -> Gates:
    """The limits that count for a model of `task`; those against an earlier run where there is one.

    A recipe for any task may limit how far the output may be from the dense model's in the figures
    of several: where the task has one of them, the others do not count. Raises `InputError` for a
    limit on any other figure that `task` does not have, and for one against an earlier run that
    lacks the figure.
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
    found = gates.model_copy(
        update={kind: each.model_copy(update=left_out[kind]) for kind, each in gates}
    )
    against = Against() if earlier is None else _against(found.against, task, earlier.final)
    return found.model_copy(update={"against": against})


def _against(wanted: Against, task: Task, earlier: Metrics) -> Against:
    """What is `wanted`; where that is nothing, the defaults for what the `earlier` run has."""
    has = {
        metric for metric, _ in wanted if _figure(_BEHIND.get(metric, metric), earlier) is not None
    }
    if has.isdisjoint(task.figures):
        raise InputError(
            f"--against: that run has no figure of the task {task.name}, such as "
            f"{task.figures[-1]}; give a run of the same task"
        )
    given = wanted.model_dump(exclude_none=True)
    for metric in given.keys() - has:
        raise InputError(
            f"--against: that run has no {metric}, which gates.against.{metric} is held against; "
            "give a run that measured it, or leave the key out"
        )
    figures = has & {*task.figures, *_OF_ANY_TASK}
    return Against(**(given or {m: limit for m, limit in AGAINST.items() if m in figures}))


def unlike(earlier: Report, baseline: Metrics) -> list[str]:
    """What to say of an `earlier` run whose dense model, or whose images, were others."""
    differing = [m for m, room in _ALIKE.items() if _apart(m, earlier.baseline, baseline) > room]
    if not differing:
        return []
    return [
        f"the earlier run is of another model or other images: {', '.join(differing)} of its "
        "baseline differ; gates against it compare unlike things"
    ]


def _apart(metric: str, one: Metrics, other: Metrics) -> float:
    """How far apart two values are: infinitely where one of them was not measured."""
    values = (_figure(metric, one), _figure(metric, other))
    if None in values:
        return 0.0 if values[0] is values[1] else math.inf
    return abs(_drop(metric, one, other) or 0.0)


def gate_results(
    gates: Gates, baseline: Metrics, final: Metrics, earlier: Report | None = None
) -> list[GateResult]:
    """One result for each limit that is set, named such as `max_drop.top1`, in the recipe's order.

    A limit that is met exactly holds. One whose figure was not measured does not.
    """
    before = dict.fromkeys(_VALUES, baseline) | {"against": earlier.final if earlier else Metrics()}
    return [
        _result(kind, metric, limit, _VALUES[kind](metric, before[kind], final))
        for kind, limits in gates
        for metric, limit in limits
        if limit is not None
    ]


def _result(kind: str, metric: str, limit: float, value: float | None) -> GateResult:
    excess = None if value is None else limit - value if kind == "min" else value - limit
    passed = excess is not None and excess <= _NOISE
    return GateResult(name=f"{kind}.{metric}", limit=limit, value=value, passed=passed)


def _figure(metric: str, of: Metrics) -> float | None:
    value: float | None = getattr(of, metric)
    return value


def _drop(metric: str, before: Metrics, final: Metrics) -> float | None:
    """Percentage points that were lost, or what a cosine lost."""
    old, new = _figure(metric, before), _figure(metric, final)
    return None if old is None or new is None else old - new


def _ratio(metric: str, before: Metrics, final: Metrics) -> float | None:
    """The share of what was before; that of latency comes from timings taken in turns."""
    if metric == "latency":
        return 1 / final.speedup if final.speedup else None
    old, new = _figure(metric, before), _figure(metric, final)
    return new / old if old and new is not None else None


def _worsening(metric: str, earlier: Metrics, final: Metrics) -> float | None:
    """By how much, or by which share, `final` is worse than an earlier run.

    Latencies of different times are compared as shares of the baselines they were timed with.
    """
    if metric == "latency":
        share = _ratio(metric, earlier, final)
        return earlier.speedup * share if earlier.speedup and share else None
    if metric in MaxRatio.model_fields:
        return _ratio(metric, earlier, final)
    if metric in Maximum.model_fields:
        return _drop(metric, final, earlier)
    return _drop(metric, earlier, final)


_VALUES: dict[str, Callable[[str, Metrics, Metrics], float | None]] = {
    "max_drop": _drop,
    "min": lambda metric, _, final: _figure(metric, final),
    "max": lambda metric, _, final: _figure(metric, final),
    "max_ratio": _ratio,
    "against": _worsening,
}
