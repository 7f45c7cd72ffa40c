"""Points of two figures as inline SVG: what candidates cost against what they lose."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from vitcompress.report import format as fmt
from vitcompress.report import svg

_HEIGHT = 340
_RADIUS = {"best": 7.0, "front": 5.0, "within": 4.0, "beyond": 3.0}


@dataclass(frozen=True)
class Point:
    """`kind`: best, front, within or beyond; `told`: what a reader sees who points at it;
    `name`: what is written beside it."""

    x: float
    y: float
    kind: str
    told: str
    name: str = ""


def front(places: Sequence[tuple[float, float]]) -> set[int]:
    """The numbers of those places that none is below in both, or in one and equal in the other."""

    def beaten(own: tuple[float, float]) -> bool:
        return any(x <= own[0] and y <= own[1] and (x, y) != own for x, y in places)

    return {number for number, own in enumerate(places) if not beaten(own)}


def scatter(points: Sequence[Point], across: str, up: str) -> Markup:
    """The points, axes from zero; those of the kinds best and front are joined by a line."""
    _, right, columns = svg.axis(0.0, max((p.x for p in points), default=1.0))
    heights = [point.y for point in points] or [1.0]
    least, top, rows = svg.axis(min(heights), max(heights))
    bottom = _HEIGHT - svg.BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return 96 * x / right, bottom - (bottom - svg.TOP) * (y - least) / (top - least)

    parts = [part for tick in rows for part in svg.level(place(0, tick)[1], fmt.number(tick))]
    for tick in columns:
        parts.append(svg.text(place(tick, least)[0], bottom + 18, fmt.number(tick), "middle"))
    joined = sorted((p.x, p.y) for p in points if p.kind in ("best", "front"))
    parts += [segment(place(*one), place(*other)) for one, other in pairwise(joined)]
    for point in sorted(points, key=lambda p: _RADIUS[p.kind]):
        x, y = place(point.x, point.y)
        parts.append(
            Markup(
                '<circle class="{}" cx="{:.2f}%" cy="{:.1f}" r="{}"><title>{}</title></circle>'
            ).format(point.kind, x, y, _RADIUS[point.kind], point.told)
        )
    named = [(*place(point.x, point.y), point.name) for point in points if point.name]
    parts += svg.names(named, bottom)
    return svg.plot(_HEIGHT, f"{up} against {across}: {len(points)} points", parts)


def segment(start: tuple[float, float], end: tuple[float, float], kind: str = "front") -> Markup:
    """A line between two points, each as percent across and pixels down."""
    return Markup('<line class="{}" x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}"/>').format(
        kind, *start, *end
    )
