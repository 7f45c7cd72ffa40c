"""Charts as inline SVG that is as wide as its box.

Lengths across are percentages, those down are pixels: text keeps its size on any screen. Numbers
along the left edge stand in the margin that the style sheet leaves (`svg.plot`). Colours come from
there too, so dark mode just works.
"""

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from vitcompress.report import format as fmt
from vitcompress.report.details import Chart

HEIGHT = 200
TOP, BOTTOM = 12, 26
COLOURS = 6
"""How many series colours the style sheet has (`.s0` to `.s5`); `.s6` is for all others."""
_NARROW = 262  # pixels across that a chart has on a phone
_LETTER = 7.5  # pixels that a letter takes at most, on average


def colour(index: int) -> str:
    """The style class of series number `index`."""
    return f"s{min(index, COLOURS)}"


def plot(height: int, told: str, parts: list[Markup]) -> Markup:
    """The chart of `parts`; `told`: what it shows, for those who do not see it."""
    head = Markup('<svg class="plot" height="{}" role="img" aria-label="{}">').format(height, told)
    return Markup("").join([head, *parts, Markup("</svg>")])


def bars(chart: Chart) -> Markup:
    """`chart` as grouped vertical bars from zero, with a tooltip on every bar."""
    values = [value for row in chart.values.values() for value in row if value is not None]
    low, high, ticks = axis(min(values, default=0), max(values, default=0))

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [part for tick in ticks for part in level(y(tick), fmt.number(tick))]
    slot = 100 / len(chart.groups)
    parts += _names(chart.groups)
    for index in range(len(chart.groups)):
        scale = (HEIGHT - TOP - BOTTOM) / (high - low)
        parts.extend(_group(chart, index, index * slot, slot, y(0), scale))
    return plot(HEIGHT, chart.told, parts)


def _names(groups: list[str]) -> Iterator[Markup]:
    """The names below the bars, as many as there is room for; fewer on a phone."""
    narrow = _fitting(groups, _NARROW, ())
    for index in _fitting(groups, 3 * _NARROW, narrow):
        kind = "" if index in narrow else "wide"
        yield text(100 * (index + 0.5) / len(groups), HEIGHT - 8, groups[index], "middle", kind)


def _fitting(groups: list[str], room: float, placed: Sequence[int]) -> list[int]:
    """The names, by index, that find room side by side in so many pixels beside those that are
    `placed`: the first and the last before the others."""
    slot, found = room / len(groups), list(placed)

    def apart(one: int, other: int) -> bool:
        half = (len(groups[one]) + len(groups[other])) / 2 * _LETTER + 8
        return abs(one - other) * slot >= half

    for index in (0, len(groups) - 1, *range(1, len(groups) - 1)):
        if index not in found and all(apart(index, other) for other in found):
            found.append(index)
    return sorted(found)


def _group(
    chart: Chart, index: int, left: float, slot: float, zero: float, scale: float
) -> list[Markup]:
    """The bars of one group, side by side in the middle of its slot."""
    present = [
        (number, name, row[index])
        for number, (name, row) in enumerate(chart.values.items())
        if row[index] is not None
    ]
    pitch = min(slot * 0.8 / max(1, len(present)), 4)
    start = left + (slot - pitch * len(present)) / 2
    drawn = []
    for place, (number, name, value) in enumerate(present):
        assert value is not None
        height = abs(value) * scale
        where = " ".join(part for part in (chart.groups[index], name) if part)
        drawn.append(
            Markup(
                '<rect class="{}" x="{:.2f}%" y="{:.1f}" width="{:.2f}%" height="{:.1f}" rx="1">'
                "<title>{}</title></rect>"
            ).format(
                colour(number),
                start + place * pitch,
                zero - height if value >= 0 else zero,
                pitch * 0.86,
                height,
                f"{where}: {fmt.value(value, chart.column.unit or chart.column.name)}",
            )
        )
    return drawn


def level(y: float, told: str) -> tuple[Markup, Markup]:
    """A line across at height `y`, and what it stands for in the margin."""
    line = Markup('<line class="grid" x1="0" x2="100%" y1="{:.1f}" y2="{:.1f}"/>').format(y, y)
    return line, Markup('<text x="-8" y="{:.1f}" text-anchor="end">{}</text>').format(y + 4, told)


def text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    """`text` at `x` percent across; `kind`: of which style, such as `wide`, not on phones."""
    return Markup('<text class="{}" x="{:.2f}%" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def axis(least: float, most: float, zero: bool = True) -> tuple[float, float, list[float]]:
    """A range that holds all values, and `zero` where it should, ending on round ticks."""
    if zero:
        least, most = min(least, 0.0), max(most, 0.0)
    if least == most:
        most += abs(most) or 1.0
    rough = max(most - least, 1e-30, 1e-9 * max(abs(least), abs(most))) / 4
    magnitude: float = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    last = max(last, first + 1)
    return first * step, last * step, [float(f"{n * step:.6g}") for n in range(first, last + 1)]


def anchor(x: float) -> str:
    """How text at `x` percent across is to be aligned, so that it stays inside."""
    return "start" if x < 15 else "end" if x > 80 else "middle"


Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels on a phone."""


def names(spots: Sequence[tuple[float, float, str]], height: float) -> Iterator[Markup]:
    """A name at each spot (percent across, pixels down), where it covers no spot and no other name,
    even on a phone; where that is not close, with a line to its spot."""
    taken: list[Box] = []
    for x, y, _ in spots:
        taken.append((_NARROW * x / 100 - 7, y - 7, _NARROW * x / 100 + 7, y + 7))
    for x, y, name in spots:
        width, middle = len(name) * _LETTER, _NARROW * x / 100
        left = middle - {"start": 0.0, "middle": width / 2, "end": float(width)}[anchor(x)]
        boxes = [(left, base - 11, left + width, base + 3) for base in _bases(y, height)]
        box = next((box for box in boxes if not any(_overlap(box, t) for t in taken)), boxes[0])
        taken.append(box)
        base = box[3] - 3
        if abs(base - y) > 24:
            yield Markup(
                '<line class="leader" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1:.1f}" y2="{2:.1f}"/>'
            ).format(x, y, base - 12 if base > y else base + 4)
        yield text(x, base, name, anchor(x), "name")


def _bases(y: float, height: float) -> list[float]:
    """Where the base line of a name of a spot at height `y` may be, the nearest first."""
    offsets = [offset for step in range(8) for offset in (-12 - 16 * step, 22 + 16 * step)]
    return [y + offset for offset in offsets if 11 < y + offset < height] or [y - 12]


def _overlap(one: Box, other: Box) -> bool:
    across = one[0] < other[2] and other[0] < one[2]
    return across and one[1] < other[3] and other[1] < one[3]
