"""What a report says, before any markup: the figures by name, their change, gates in words."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from vitcompress.report import format as fmt
from vitcompress.report.model import Changes, GateResult, Metrics, Report


@dataclass(frozen=True)
class Figure:
    """One row of every comparison table."""

    key: str
    label: str
    text: fmt.Formatter
    change: Literal["share", "points"] | None = None
    better: Literal["low", "high"] | None = None

    def read(self, metrics: Metrics) -> float | None:
        """The value in `metrics`; `latency_ms.p50` looks inside."""
        name, _, inner = self.key.partition(".")
        found = getattr(metrics, name)
        value: float | None = attrgetter(inner)(found) if inner and found is not None else found
        return value


@dataclass(frozen=True)
class FigureChange:
    """The way from the baseline to the end, and whether it went the right way."""

    text: str
    trend: Literal["better", "worse", "same"]


FIGURES = (
    Figure("bytes", "Size", fmt.size, "share", "low"),
    Figure("params", "Parameters", fmt.count, "share", "low"),
    Figure("macs", "MACs per image", fmt.count, "share", "low"),
    Figure("latency_ms.p50", "Latency p50", fmt.milliseconds, "share", "low"),
    Figure("latency_ms.p90", "Latency p90", fmt.milliseconds, "share", "low"),
    Figure("latency_ms.p99", "Latency p99", fmt.milliseconds, "share", "low"),
    Figure("speedup", "Speed-up", fmt.times),
    Figure("top1", "Top-1", fmt.percent, "points", "high"),
    Figure("top5", "Top-5", fmt.percent, "points", "high"),
    Figure("map", "Mean average precision", fmt.percent, "points", "high"),
    Figure("knn", "5 nearest neighbours", fmt.percent, "points", "high"),
    Figure("agreement", "Agreement", fmt.percent),
    Figure("kl", "KL (nats)", fmt.nats),
    Figure("relative_error", "Relative error", fmt.ratio),
    Figure("cosine", "Cosine", fmt.similarity),
    Figure("cosine_p5", "Cosine, 5th percentile", fmt.similarity),
    Figure("neighbours", "Same nearest neighbour", fmt.percent),
    Figure("norm_ratio", "Norm ratio", fmt.ratio),
    Figure("images", "Images", fmt.whole),
)
BY_KEY = {figure.key: figure for figure in FIGURES}


def change(figure: Figure, before: Metrics, after: Metrics) -> FigureChange:
    """How `figure` moved; a dash when either side was not measured."""
    old, new = figure.read(before), figure.read(after)
    if (
        figure.change is None
        or old is None
        or new is None
        or (figure.change == "share" and not old)
    ):
        return FigureChange(fmt.DASH, "same")
    text = fmt.points(new - old) if figure.change == "points" else fmt.relative(new / old - 1)
    if new == old or text in (fmt.relative(0.0), fmt.points(0.0)):
        return FigureChange(text, "same")
    return FigureChange(text, "better" if (new < old) == (figure.better == "low") else "worse")


def with_interval(figure: Figure, metrics: Metrics) -> str:
    """The figure, a rate with its interval: `92.2 % (83.0–96.6)`."""
    told, found = figure.text(figure.read(metrics)), metrics.intervals.get(figure.key)
    if found is None:
        return told
    return f"{told} ({fmt.interval(found.low, found.high).removesuffix(' %')})"


INTERVALS = (
    "Beside a rate: the 95 % confidence interval (Wilson) that the number of images leaves. "
    "Both models saw the same images, so what changed between them is more certain than "
    "intervals that overlap suggest."
)


@dataclass(frozen=True)
class Gain:
    """What a stage did to one figure: the change, or the figure that it led to."""

    label: str
    text: str
    note: str
    trend: Literal["better", "worse", "same"] = "same"


_OF_STAGES = (
    *("macs", "params", "top1", "map", "knn", "agreement", "kl", "relative_error", "cosine"),
)


def gains(before: Metrics, after: Metrics) -> Iterator[Gain]:
    """What led from one model to the next, of what is measured between stages."""
    for figure in (BY_KEY[key] for key in _OF_STAGES):
        old, new = figure.read(before), figure.read(after)
        if new is None or (figure.key == "params" and old == new):
            continue
        if figure.change is None:
            was = f"{figure.text(old)} before" if old is not None else ""
            yield Gain(figure.label, with_interval(figure, after), was)
        else:
            moved = change(figure, before, after)
            ends = fmt.span(figure.text(old), with_interval(figure, after))
            yield Gain(figure.label, moved.text, ends, moved.trend)


def measured(measure: str, value: float) -> str:
    """What sets an image apart, by the word for it."""
    texts: dict[str, fmt.Formatter] = {"cosine": fmt.similarity, "kl": fmt.nats}
    return texts.get(measure, fmt.ratio)(value)


def changes_told(found: Changes) -> str:
    """How many answers have changed, and to what end."""
    if found.changed is None:
        ends = {"cosine": "the lowest cosine to", "kl": "the largest KL from"}
        word = ends.get(found.measure, "the largest distance from")
        return f"The images whose outputs have {word} those of the dense model."
    if not found.changed:
        return f"None of the {fmt.whole(found.images)} answers changed."
    told = f"The answer changed on {fmt.whole(found.changed)} of {fmt.whole(found.images)} images"
    if found.lost is None or found.gained is None:
        return f"{told}."
    parts = (
        (found.lost, "no longer right"),
        (found.gained, "newly right"),
        (found.changed - found.lost - found.gained, "wrong before and after"),
    )
    return f"{told}: {', '.join(f'{fmt.whole(n)} {words}' for n, words in parts if n)}."


def columns(report: Report) -> list[tuple[str, Metrics]]:
    """The columns of the comparison: baseline, each stage that was measured, final, which is what
    the last stage left."""
    measured = [(stage.name, stage.metrics) for stage in report.stages[:-1] if stage.metrics]
    return [("Baseline", report.baseline), *measured, ("Final", report.final)]


def shown(measured: Iterable[Metrics]) -> list[Figure]:
    """The figures that any of these has, in the order of the tables."""
    known = list(measured)
    return [f for f in FIGURES if any(f.read(metrics) is not None for metrics in known)]


def told(metrics: Metrics) -> str:
    """All figures that were measured, on one line: `Top-1 86.6 %, Agreement 99.0 %, Images 500`."""
    found = ((figure, figure.read(metrics)) for figure in FIGURES)
    return ", ".join(f"{f.label} {f.text(value)}" for f, value in found if value is not None)


def model_name(report: Report) -> str:
    """What to call the model in a title."""
    return str(report.model.get("name") or "model")


def size_ratio(report: Report) -> float | None:
    """How many times smaller the ONNX file is."""
    before, after = report.baseline.bytes, report.final.bytes
    return before / after if before and after else None


def share(baseline: Metrics, metrics: Metrics, cost: str) -> float | None:
    """`cost` in percent of the baseline's; that of latency comes from timings taken in turns."""
    if cost == "latency":
        return 100 / metrics.speedup if metrics.speedup else None
    before, after = getattr(baseline, cost), getattr(metrics, cost)
    return 100 * after / before if before and after is not None else None


def alike(reports: Iterable[Report]) -> bool:
    """Whether all are of one model on one set of images, as far as figures tell."""
    found = ((model_name(report), report.baseline) for report in reports)
    return len({(name, b.images, b.top1, b.map, b.knn) for name, b in found}) == 1


def gain(ratio: float | None, more: str, less: str, alike: str) -> str:
    """`2.41× faster`, `1.20× slower` where the ratio is below one, `1.00× as fast` near it."""
    if ratio is None or ratio <= 0:
        return fmt.DASH
    if fmt.times(1.0) in (fmt.times(ratio), fmt.times(1 / ratio)):
        return f"{fmt.times(1.0)} {alike}"
    return f"{fmt.times(ratio)} {more}" if ratio >= 1 else f"{fmt.times(1 / ratio)} {less}"


def headline(report: Report) -> str:
    """One sentence: what was gained, what it cost."""
    final = report.final
    gained = [
        gain(ratio, *words)
        for ratio, *words in (
            (size_ratio(report), "smaller", "larger", "as large"),
            (final.speedup, "faster", "slower", "as fast"),
        )
        if ratio
    ]
    lost = []
    for key, name in (("top1", "top-1"), ("map", "mAP"), ("knn", "k-NN")):
        figure = BY_KEY[key]
        moved = change(figure, report.baseline, final)
        if moved.text != fmt.DASH:
            ends = [figure.text(figure.read(metrics)) for metrics in (report.baseline, final)]
            alike = f"{name} unchanged at {ends[1]}"
            lost.append(
                alike
                if moved.trend == "same" and ends[0] == ends[1]
                else f"{name} {moved.text} ({fmt.span(*ends)})"
            )
    for value, alike in (
        (final.agreement, f"{fmt.percent(final.agreement)} agreement with the dense model"),
        (final.kl, f"KL {fmt.nats(final.kl)} nats from the dense model"),
        (final.cosine, f"mean cosine {fmt.similarity(final.cosine)} to the dense model"),
        (final.relative_error, f"relative error {fmt.ratio(final.relative_error)}"),
    ):
        if value is not None:
            lost.append(alike)
            break
    if lost and final.images:
        lost[-1] += f" on {fmt.whole(final.images)} images"
    parts = [" and ".join(gained), ", ".join(lost) or "accuracy was not measured"]
    sentence = "; ".join(part for part in parts if part)
    return sentence[0].upper() + sentence[1:] + "."


def verdict(report: Report) -> str:
    """The gates in one phrase: `2 of 3 gates passed`."""
    total = len(report.gates)
    if not total:
        return "No gates set"
    passed = sum(gate.passed for gate in report.gates)
    if passed == total:
        return f"All {total} gates passed" if total > 1 else "Gate passed"
    return f"{total - passed} of {total} gates failed" if total > 1 else "Gate failed"


@dataclass(frozen=True)
class _Rule:
    """How a kind of gate is told: the limit in words, and a breach in words."""

    limit: Callable[[str, str], str]
    breach: Callable[[str, str, str], str]
    unit: str = ""


_RULES = {
    "max_drop": _Rule(
        lambda name, limit: f"{name} may drop by at most {limit}",
        lambda name, value, limit: f"{name} dropped {value}, allowed {limit}",
        " points",
    ),
    "max_ratio": _Rule(
        lambda name, limit: f"{name} at most {limit} of the baseline",
        lambda name, value, limit: f"{name} is {value} of the baseline, allowed {limit}",
        "×",
    ),
    "min": _Rule(
        lambda name, limit: f"{name} at least {limit}",
        lambda name, value, limit: f"{name} is {value}, at least {limit} required",
    ),
    "max": _Rule(
        lambda name, limit: f"{name} at most {limit}",
        lambda name, value, limit: f"{name} is {value}, allowed {limit}",
    ),
}


def _against(how: str, unit: str = "") -> _Rule:
    return _Rule(
        lambda name, limit: f"{name} at most {limit} {how} the earlier run",
        lambda name, value, limit: f"{name} is {value} {how} the earlier run, allowed {limit}",
        unit,
    )


_UNKNOWN = _Rule(
    lambda name, limit: f"{name}, limit {limit}",
    lambda name, value, limit: f"{name} is {value}, limit {limit}",
)
_PERCENT = ("top1", "top5", "map", "knn", "agreement", "neighbours")
_UNITS = {**dict.fromkeys(_PERCENT, " %"), "speedup": "×"}
_AGAINST = {
    **dict.fromkeys(_PERCENT, _against("below", " points")),
    **dict.fromkeys(("cosine", "cosine_p5"), _against("below")),
    **dict.fromkeys(("kl", "relative_error"), _against("above")),
    **dict.fromkeys(("bytes", "macs", "params", "latency"), _against("of", "×")),
}


def _rule(gate: GateResult) -> tuple[_Rule, str, str]:
    """The rule, the metric and the unit of a gate."""
    kind, _, metric = gate.name.partition(".")
    rule = _AGAINST.get(metric) if kind == "against" else _RULES.get(kind) if metric else None
    if rule is None:
        return _UNKNOWN, gate.name, ""
    return rule, metric, rule.unit or _UNITS.get(metric, "")


def gate_limit(gate: GateResult) -> str:
    """What the gate demands, in words."""
    rule, metric, unit = _rule(gate)
    name = BY_KEY[metric].label if metric in BY_KEY else metric
    return rule.limit(name, _with_unit(gate.limit, unit))


def gate_doubt(gate: GateResult, report: Report) -> str:
    """Why the images do not settle whether the gate holds; empty where they do."""
    kind, _, metric = gate.name.partition(".")
    found = report.final.intervals.get(metric)
    if kind not in ("min", "max") or found is None or not found.low < gate.limit < found.high:
        return ""
    return (
        f"{fmt.whole(found.images)} images do not settle it: the 95 % interval is "
        f"{fmt.interval(found.low, found.high)}"
    )


def gate_value(gate: GateResult) -> str:
    """What was measured, with its unit; precise enough to stand beside the limit."""
    return fmt.DASH if gate.value is None else _with_unit(gate.value, _rule(gate)[2])


def _with_unit(value: float, unit: str) -> str:
    return fmt.number(value) + (
        unit.removesuffix("s") if unit == " points" and value == 1 else unit
    )


def gate_failure(gate: GateResult) -> str:
    """Why a gate failed: `top1 dropped 1.9, allowed 1`."""
    rule, metric, _ = _rule(gate)
    if gate.value is None:
        return f"{metric} was not measured, so {gate.name} (limit {gate.limit:g}) cannot hold"
    value, limit = fmt.number(gate.value), fmt.number(gate.limit)
    return rule.breach(metric, repr(gate.value) if value == limit else value, limit)
