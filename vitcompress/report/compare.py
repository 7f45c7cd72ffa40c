"""Several runs side by side: their figures, which none beats, and how their recipes differ."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vitcompress import paths
from vitcompress.report import figures, html
from vitcompress.report import format as fmt
from vitcompress.report.figures import Figure
from vitcompress.report.model import Metrics, Report
from vitcompress.report.scatter import Point, front, scatter
from vitcompress.yamltext import read_yaml

_LOSSES = (*("top1", "map", "knn", "agreement", "cosine", "relative_error", "kl"),)
"""The figures that a loss is read from; the first that all runs have counts."""
_COSTS = {"latency": "Latency", "bytes": "Size"}
KEY = {
    "front": "no other run is both cheaper and better",
    "within": "another one is, its gates passed",
    "beyond": "a gate failed",
}


@dataclass(frozen=True)
class Run:
    """`recipe`: its values by dotted key; empty where the folder has none."""

    report: Report
    recipe: Mapping[str, str]


@dataclass(frozen=True)
class Front:
    """The runs by one cost, in percent of the baseline's, and by their loss."""

    title: str
    across: str
    up: str
    drawn: Markup


def read(folder: Path) -> Run:
    """What lies in an output folder. Raises `InputError` where it is none, or cannot be read."""
    report, file = Report.read(folder), folder / "recipe.yaml"
    if not paths.exists(file):
        return Run(report, {})
    return Run(report, dict(_flat(read_yaml(file).data)))


def as_json(runs: Mapping[str, Run]) -> dict[str, Any]:
    """By run its final figures, and besides these `baseline` and `gates`."""
    return {
        name: {
            **run.report.final.model_dump(),
            "baseline": run.report.baseline.model_dump(),
            "gates": [gate.model_dump() for gate in run.report.gates],
        }
        for name, run in runs.items()
    }


def render(runs: Mapping[str, Run]) -> str:
    """The page of `compare`."""
    reports = [run.report for run in runs.values()]
    columns = [
        ("Baseline", reports[0].baseline),
        *zip(runs, (r.final for r in reports), strict=True),
    ]
    return html.compare_page(
        title=" · ".join(dict.fromkeys(figures.model_name(report) for report in reports)),
        columns=columns,
        figures=figures.shown(metrics for _, metrics in columns),
        verdicts=[figures.verdict(report) for report in reports],
        passed=[report.passed if report.gates else None for report in reports],
        fronts=list(_fronts(runs)),
        key=KEY,
        names=list(runs),
        differing=dict(differing(runs)),
        alike=figures.alike(reports),
    )


def differing(runs: Mapping[str, Run]) -> Iterator[tuple[str, list[str]]]:
    """The keys of recipes that have not the same value in all runs, with their values."""
    recipes = [run.recipe for run in runs.values()]
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        values = [recipe.get(key, fmt.DASH) for recipe in recipes]
        if len(set(values)) > 1:
            yield key, values


def _flat(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Values by dotted key; of a list of things with names, each is under its own."""
    inner = f"{key}." if key else ""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _flat(each, f"{inner}{name}")
    elif isinstance(value, list) and value and all(isinstance(e, dict) for e in value):
        for number, each in enumerate(value):
            yield from _flat(each, f"{inner}{each.get('name', number)}")
    else:
        yield key, fmt.DASH if value is None else str(value)


def _fronts(runs: Mapping[str, Run]) -> Iterator[Front]:
    """A picture for each cost that all runs have, where they have a loss."""
    reports = [run.report for run in runs.values()]
    for figure in (figures.BY_KEY[key] for key in _LOSSES):
        losses = [_loss(figure, report.baseline, report.final) for report in reports]
        known = [loss for loss in losses if loss is not None]
        if len(known) < len(losses):
            continue
        for cost, title in _COSTS.items():
            shares = [figures.share(report.baseline, report.final, cost) for report in reports]
            paid = [share for share in shares if share is not None]
            if len(paid) == len(shares):
                across, up = f"{title}, % of the baseline’s", _loss_words(figure)
                points = _points(list(runs), reports, list(zip(paid, known, strict=True)))
                yield Front(title, across, up, scatter(points, across, up))
        return


def _points(
    names: list[str], reports: list[Report], places: list[tuple[float, float]]
) -> list[Point]:
    best = front(places)
    kinds = [
        "beyond" if not report.passed else "front" if number in best else "within"
        for number, report in enumerate(reports)
    ]
    return [
        Point(x, y, kind, f"{name}: {figures.headline(report)}", name)
        for name, report, (x, y), kind in zip(names, reports, places, kinds, strict=True)
    ]


def _loss(figure: Figure, before: Metrics, after: Metrics) -> float | None:
    """How much is lost by `figure`, lower is better; None where it was not measured."""
    old, new = figure.read(before), figure.read(after)
    if new is None:
        return None
    if figure.change == "points":
        return None if old is None else old - new
    return {"agreement": 100 - new, "cosine": 1 - new}.get(figure.key, new)


def _loss_words(figure: Figure) -> str:
    if figure.change == "points":
        return f"{figure.label}, points lost"
    other = {"agreement": "Answers that differ from the dense model’s, %", "cosine": "1 − cosine"}
    return other.get(figure.key, figure.label)
