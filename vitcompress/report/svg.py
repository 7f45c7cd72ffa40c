"""Bar charts as inline SVG; colours come from the page's style sheet, so dark mode just works."""

import math

from markupsafe import Markup

from vitcompress.report import format as fmt
from vitcompress.report.details import Chart

WIDTH, HEIGHT = 880, 230
LEFT, RIGHT, TOP, BOTTOM = 68, 4, 12, 26
COLOURS = 6
"""How many series colours the style sheet has (`.s0` to `.s5`); `.s6` is for all others."""


def colour(index: int) -> str:
    """The style class of series number `index`."""
    return f"s{min(index, COLOURS)}"


def bars(chart: Chart) -> Markup:
    """`chart` as grouped vertical bars from zero, with a tooltip on every bar."""
    values = [value for row in chart.values.values() for value in row if value is not None]
    low, high, ticks = axis(min(values, default=0), max(values, default=0))

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, fmt.label(f"{chart.name}, {chart.column.name}")
        )
    ]
    for tick in ticks:
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                LEFT, WIDTH - RIGHT, y(tick), y(tick)
            )
        )
        parts.append(text(LEFT - 8, y(tick) + 4, fmt.number(tick), "end"))
    slot = (WIDTH - LEFT - RIGHT) / len(chart.groups)
    every = math.ceil((max(map(len, chart.groups)) * 7 + 8) / slot)
    for index, group in enumerate(chart.groups):
        left = LEFT + index * slot
        if index % every == 0:
            parts.append(text(left + slot / 2, HEIGHT - 8, group, "middle"))
        parts.extend(_group(chart, index, left, slot, y(0), (HEIGHT - TOP - BOTTOM) / (high - low)))
    return Markup("").join([*parts, Markup("</svg>")])


def _group(
    chart: Chart, index: int, left: float, slot: float, zero: float, scale: float
) -> list[Markup]:
    """The bars of one group, side by side in the middle of its slot."""
    present = [
        (number, name, row[index])
        for number, (name, row) in enumerate(chart.values.items())
        if row[index] is not None
    ]
    pitch = min(slot * 0.8 / max(1, len(present)), 28)
    start = left + (slot - pitch * len(present)) / 2
    drawn = []
    for place, (number, name, value) in enumerate(present):
        assert value is not None
        height = abs(value) * scale
        where = " ".join(part for part in (chart.groups[index], name) if part)
        drawn.append(
            Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1.5">'
                "<title>{}</title></rect>"
            ).format(
                colour(number),
                start + place * pitch,
                zero - height if value >= 0 else zero,
                max(pitch - min(2.0, pitch * 0.2), 0.5),
                height,
                f"{where}: {fmt.value(value, chart.column.unit or chart.column.name)}",
            )
        )
    return drawn


def text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )


def axis(least: float, most: float) -> tuple[float, float, list[float]]:
    """A range that holds zero and all values, ending on round ticks."""
    least, most = min(least, 0.0), max(most, 0.0)
    rough = max(most - least, 1e-30) / 4
    magnitude: float = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    last = max(last, first + 1)
    return first * step, last * step, [float(f"{n * step:.6g}") for n in range(first, last + 1)]
