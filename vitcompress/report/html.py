"""Reports as self-contained HTML pages: no script, no network, light and dark."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vitcompress.details import Column, Fact, Table
from vitcompress.report import details, figures, svg
from vitcompress.report import format as fmt
from vitcompress.report.model import Report, StageReport
from vitcompress.report.overview import overview

_QUALITY = (
    *("top1", "map", "knn", "agreement", "kl", "relative_error"),
    *("cosine", "neighbours"),
)
"""Figures worth a card; the first three that were measured have one."""


@dataclass(frozen=True)
class Card:
    """One headline figure."""

    label: str
    value: str
    unit: str
    note: str
    trend: str


@dataclass(frozen=True)
class StagePart:
    """A stage, what it did to the figures, and its charts: the first tells what was chosen."""

    stage: StageReport
    gains: list[figures.Gain]
    charts: list[details.Chart]


def render(report: Report) -> str:
    """`report.html`."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            title=figures.model_name(report),
            headline=figures.headline(report).replace(" %", "\N{NO-BREAK SPACE}%"),
            verdict=figures.verdict(report),
            cards=list(_cards(report)),
            columns=figures.columns(report),
            figures=figures.shown(metrics for _, metrics in figures.columns(report)),
            overview=overview(report),
            changes_told=figures.changes_told(report.changes) if report.changes else "",
            parts=list(_parts(report)),
            has_onnx=any(artifact.path == "predict.py" for artifact in report.artifacts),
        )
    )


def sensitivity_page(title: str, tables: Mapping[str, Table]) -> str:
    """A page of what `vitcompress sensitivity` found, by stage: charts and tables."""
    template = _environment().get_template("sensitivity.html.j2")
    return template.render(title=title, tables=tables)


def compare_page(**told: object) -> str:
    """A page of the runs that `vitcompress compare` was given."""
    return _environment().get_template("compare.html.j2").render(**told)


def search_page(**told: object) -> str:
    """A page of what `vitcompress search` tried."""
    return _environment().get_template("search.html.j2").render(**told)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vitcompress", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        value=fmt.value, label=fmt.label, size=fmt.size, seconds=fmt.seconds, date=fmt.date
    )
    environment.globals.update(
        change=figures.change,
        gate_limit=figures.gate_limit,
        gate_doubt=figures.gate_doubt,
        interval=fmt.interval,
        measured=figures.measured,
        breakable=_breakable,
        INTERVALS=figures.INTERVALS,
        gate_value=figures.gate_value,
        facts_of=details.stage_facts,
        charts=details.charts,
        numeric=details.numeric,
        bars=svg.bars,
        colour=svg.colour,
        cell=_cell,
        DASH=fmt.DASH,
    )
    return environment


def _cards(report: Report) -> Iterator[Card]:
    before, after = report.baseline, report.final
    ratio = figures.size_ratio(report)

    def card(key: str, label: str, value: str, note: str, trend: str = "same") -> Card:
        measured = note if value != fmt.DASH else "not measured"
        amount, _, unit = value.partition(" ")
        if (found := after.intervals.get(key)) is not None:
            measured += f"; 95 % interval {fmt.interval(found.low, found.high)}"
        return Card(label, amount, unit, measured, trend)

    def span(key: str) -> str:
        figure = figures.BY_KEY[key]
        return fmt.span(figure.text(figure.read(before)), figure.text(figure.read(after)))

    smaller = figures.gain(ratio, "smaller", "larger", "as large")
    yield card("bytes", "Size", smaller, span("bytes"), _way(ratio))
    faster = figures.gain(after.speedup, "faster", "slower", "as fast")
    yield card("speedup", "Speed", faster, f"p50 {span('latency_ms.p50')}", _way(after.speedup))
    for figure in [f for f in figures.shown([after]) if f.key in _QUALITY][:3]:
        if figure.change:
            moved = figures.change(figure, before, after)
            yield card(figure.key, figure.label, moved.text, span(figure.key), moved.trend)
        else:
            note = f"of {fmt.whole(after.images)} images" if after.images else ""
            yield card(figure.key, figure.label, figure.text(figure.read(after)), note)


def _parts(report: Report) -> Iterator[StagePart]:
    before = report.baseline
    for stage in report.stages:
        told = list(figures.gains(before, stage.metrics)) if stage.metrics else []
        drawn = [chart for table in stage.details.tables for chart in details.charts(table)]
        yield StagePart(stage, told, drawn)
        before = stage.metrics or before


def _way(ratio: float | None) -> str:
    if ratio is None or fmt.times(1.0) in (fmt.times(ratio), fmt.times(1 / ratio)):
        return "same"
    return "better" if ratio > 1 else "worse"


def _breakable(name: str) -> Markup:
    """A path that may be broken behind its separators, and nowhere else."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_.-])", name))


def _cell(table: Table, row: Mapping[str, Fact], column: Column) -> Markup:
    """The content of a table cell; a figure of error carries a small bar."""
    item = row.get(column.name)
    text = fmt.value(item, column.unit or column.name)
    if item is None or not (column.name.endswith("error") and details.numeric(table, column)):
        return Markup("{}").format(text)
    share = 100 * abs(float(item)) / (details.peak(table, column) or 1)
    return Markup('{}<i class="bar"><b style="width:{:.1f}%"></b></i>').format(text, share)
