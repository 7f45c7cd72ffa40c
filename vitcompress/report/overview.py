"""The one chart of a whole run: how good each stage leaves the model, against what it then costs.

Between stages only multiply-accumulates are known; size and latency are measured on two files, the
baseline's and the one that is exported.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from vitcompress.report import figures, svg
from vitcompress.report.figures import Figure
from vitcompress.report.model import Interval, Report
from vitcompress.report.scatter import segment

_HEIGHT, _ACROSS = 300, 96  # pixels down, and percent across up to the last tick
_BOTTOM = _HEIGHT - svg.BOTTOM - 16
_QUALITY = ("top1", "map", "knn", "agreement", "cosine", "relative_error")
_COSTS = {"macs": "MACs per image", "bytes": "file size", "latency": "latency p50"}
_NAMES = {"bytes": "size", "latency": "latency"}  # beside a point; those of MACs have the stage's


@dataclass(frozen=True)
class Overview:
    """`figure`: the one that tells how good a model is. `costs`: what is drawn, by style class."""

    drawn: Markup
    figure: Figure
    costs: dict[str, str]
    has_intervals: bool


@dataclass(frozen=True)
class _Spot:
    """A model at one of its costs, in percent of the baseline's."""

    cost: str
    share: float
    value: float
    interval: Interval | None
    name: str
    told: str

    @property
    def series(self) -> int:
        return list(_COSTS).index(self.cost)


def overview(report: Report) -> Overview | None:
    """None where no accuracy, or no cost, was measured of both the baseline and the end."""
    ends = (report.baseline, report.final)
    known = (figures.BY_KEY[key] for key in _QUALITY)
    figure = next((f for f in known if all(f.read(each) is not None for each in ends)), None)
    if figure is None:
        return None
    lines = [list(_line(report, figure, cost)) for cost in _COSTS]
    lines = [line for line in lines if len(line) > 1]
    if not lines:
        return None
    drawn = _drawn(lines, figure)
    costs = {svg.colour(line[0].series): _COSTS[line[0].cost] for line in lines}
    return Overview(drawn, figure, costs, any(spot.interval for spot in lines[0]))


def _line(report: Report, figure: Figure, cost: str) -> Iterator[_Spot]:
    """The models of which `cost` is known, the baseline first."""
    columns = figures.columns(report)
    last = report.stages[-1].name if report.stages else "exported"
    names = ["baseline", *(name for name, _ in columns[1:-1]), last]
    for name, (_, metrics) in zip(names, columns, strict=True):
        share, value = figures.share(report.baseline, metrics, cost), figure.read(metrics)
        if share is not None and value is not None:
            named = name if metrics is report.baseline else _NAMES.get(cost, name)
            rate = figures.with_interval(figure, metrics)
            told = f"{name}: {figure.label} {rate}, {_COSTS[cost]} {share:.0f} % of the baseline's"
            yield _Spot(cost, share, value, metrics.intervals.get(figure.key), named, told)


def _drawn(lines: list[list[_Spot]], figure: Figure) -> Markup:
    spots = [*lines[0], *(spot for line in lines[1:] for spot in line[1:])]  # one baseline
    low, high, rows = svg.axis(*_range(spots), zero=False)
    _, right, columns = svg.axis(0.0, max(100.0, *(spot.share for spot in spots)))

    def across(share: float) -> float:
        return _ACROSS * share / right

    def down(value: float) -> float:
        return svg.TOP + (_BOTTOM - svg.TOP) * (high - value) / (high - low)

    def place(spot: _Spot) -> tuple[float, float]:
        return across(spot.share), down(spot.value)

    parts = [part for tick in rows for part in svg.level(down(tick), figure.text(tick))]
    parts += [svg.text(across(t), _BOTTOM + 20, f"{t:.0f} %", "middle") for t in columns]
    parts.append(svg.text(_ACROSS / 2, _HEIGHT - 4, "of the baseline's cost", "middle"))
    for one, other in (pair for line in lines for pair in pairwise(line)):
        kind = f"path p{one.series}{'' if one.cost == 'macs' else ' dashed'}"
        parts.append(segment(place(one), place(other), kind))
    for spot in lines[0]:
        if spot.interval is not None:
            x, ends = across(spot.share), (spot.interval.low, spot.interval.high)
            parts.append(segment((x, down(ends[0])), (x, down(ends[1])), "whisker"))
    for number, spot in enumerate(spots):
        parts.append(_mark(spot.series if number else svg.COLOURS, *place(spot), spot.told))
    parts += svg.names([(*place(spot), spot.name) for spot in spots], _BOTTOM)
    told = "; ".join(spot.told for spot in spots)
    return svg.plot(_HEIGHT, told, parts)


def _range(spots: list[_Spot]) -> tuple[float, float]:
    """The least and the greatest value to be drawn, never the same."""
    ends = [(s.interval.low, s.interval.high) for s in spots if s.interval is not None]
    values = [*(spot.value for spot in spots), *(end for pair in ends for end in pair)]
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - (1 if low > 1 else 0.01), high)


def _mark(series: int, x: float, y: float, told: str) -> Markup:
    return Markup(
        '<circle class="{}" cx="{:.2f}%" cy="{:.1f}" r="6"><title>{}</title></circle>'
    ).format(svg.colour(series), x, y, told)
