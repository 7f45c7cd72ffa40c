"""Points of two figures as inline SVG: what candidates cost against what they lose."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vitcompress.report import format as fmt
from vitcompress.report import svg

_WIDTH, _HEIGHT = 560, 340  # narrow: it has to fit a phone
_RADIUS = {"best": 7.0, "front": 5.0, "within": 4.0, "beyond": 3.0}


@dataclass(frozen=True)
class Point:
    """`kind`: best, front, within or beyond; `told`: what a reader sees who points at it."""

    x: float
    y: float
    kind: str
    told: str


def scatter(points: Sequence[Point], across: str, up: str) -> Markup:
    """The points, axes from zero; those of the kinds best and front are joined by a line."""
    _, right, columns = svg.axis(0.0, max((p.x for p in points), default=1.0))
    _, top, rows = svg.axis(0.0, max((p.y for p in points), default=1.0))
    bottom = _HEIGHT - svg.BOTTOM - 16

    def place(x: float, y: float) -> tuple[float, float]:
        width, height = _WIDTH - svg.LEFT - svg.RIGHT - 20, bottom - svg.TOP
        return svg.LEFT + width * x / right, bottom - height * y / top

    parts = [
        Markup('<svg class="fit" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            _WIDTH, _HEIGHT, f"{up} against {across}, {len(points)} candidates"
        )
    ]
    for tick in rows:
        (x, y), (end, _) = place(0, tick), place(right, tick)
        parts.append(
            Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                x, end, y, y
            )
        )
        parts.append(svg.text(x - 8, y + 4, fmt.number(tick), "end"))
    for tick in columns:
        x, y = place(tick, 0)
        parts.append(svg.text(x, y + 18, fmt.number(tick), "middle"))
    parts.append(svg.text((svg.LEFT + _WIDTH) / 2, _HEIGHT - 6, across, "middle"))
    parts.append(svg.text(svg.LEFT, svg.TOP - 2, up, "start"))
    joined = sorted((p.x, p.y) for p in points if p.kind in ("best", "front"))
    line = " ".join("{:.1f},{:.1f}".format(*place(*each)) for each in joined)
    parts.append(Markup('<polyline class="front" points="{}"/>').format(line))
    for point in sorted(points, key=lambda p: _RADIUS[p.kind]):
        x, y = place(point.x, point.y)
        parts.append(
            Markup(
                '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>'
            ).format(point.kind, x, y, _RADIUS[point.kind], point.told)
        )
    return Markup("").join([*parts, Markup("</svg>")])
