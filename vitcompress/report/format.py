"""How a number is written for people: one spelling for Markdown, HTML and the terminal."""

from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import groupby
from typing import Any

DASH = "–"
"""What stands where nothing was measured."""

Formatter = Callable[[float | None], str]


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _significant(value: float, digits: int = 3) -> str:
    """Fixed-point text with `digits` significant digits, and every digit left of the point."""
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2]) if value else 0
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """`value` in the largest of `units` (each a thousand of the one before) that it fills."""
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{_significant(value)} {unit}".rstrip()
        value /= 1000
    return f"{_significant(value)} {units[-1]}"


def size(value: float | None) -> str:
    """Bytes in decimal units: `22.9 MB`."""
    if value is None:
        return DASH
    return f"{value:.0f} B" if value < 1000 else _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def count(value: float | None) -> str:
    """A large count: `5.72 M`, `1.26 G`; small ones in full."""
    if value is None:
        return DASH
    return f"{value:.0f}" if value < 1000 else _scaled(value, ("", "k", "M", "G", "T"))


def macs(value: float | None) -> str:
    """Multiply-accumulates: `1.25 GMACs`."""
    return DASH if value is None else _scaled(value, ("MACs", "kMACs", "MMACs", "GMACs", "TMACs"))


def whole(value: float | None) -> str:
    """A count in full: `1,000`."""
    return DASH if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """`98.6 %`; what is not quite 100 % is never rounded up to it."""
    if value is None:
        return DASH
    texts = (f"{value:.{digits}f}" for digits in (1, 2, 3))
    return f"{next(t for t in (*texts, repr(value)) if value >= 100 or float(t) < 100)} %"


def interval(low: float, high: float) -> str:
    """Between two percentages: `83.0–96.6 %`."""
    return span(percent(low), percent(high)).replace(" → ", "–")


def points(value: float | None) -> str:
    """A difference between two percentages: `−0.2 points`."""
    if value is None:
        return DASH
    digits = 1 if abs(value) >= 0.1 or abs(value) < 5e-4 else 2 if abs(value) >= 0.01 else 3
    sign = "+" if round(value, digits) > 0 else ""
    return _signed(f"{sign}{round(value, digits) + 0.0:.{digits}f} points")


def relative(value: float | None) -> str:
    """A relative difference: −0.73 as `−73 %`."""
    if value is None:
        return DASH
    digits = 0 if abs(value) >= 0.1 else 1
    rounded = round(100 * value, digits) + 0.0
    return _signed(f"{rounded:+.{digits}f} %" if rounded else "0 %")


def milliseconds(value: float | None) -> str:
    """`12.3 ms`."""
    return DASH if value is None else f"{_significant(value)} ms"


def seconds(value: float | None) -> str:
    """`8.2 s`, `4 min 12 s`, `1 h 05 min`."""
    if value is None:
        return DASH
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def roughly(value: float) -> str:
    """A time that is an estimate: `35 s`, `4 min`, `1 h 05 min`."""
    return f"{value:.0f} s" if value < 99.5 else seconds(60 * round(value / 60)).split(" 00 s")[0]


def date(value: str) -> str:
    """`2026-11-27T23:41Z` as `27 November 2026, 23:41 UTC`."""
    return f"{datetime.fromisoformat(value):%-d %B %Y, %H:%M} UTC" if value else ""


def nats(value: float | None) -> str:
    """A divergence: `0.0021`."""
    return DASH if value is None else _signed(f"{value:.2g}")


def ratio(value: float | None) -> str:
    """A relative error to three significant digits: `0.0120`."""
    if value is None:
        return DASH
    small = value != 0 and abs(value) < 1e-4
    return _signed(f"{value:.1e}" if small else _significant(value))


def similarity(value: float | None) -> str:
    """`0.9987`, `1 − 7e−13`; what is not quite 1 is never rounded up to it."""
    if value is None:
        return DASH
    texts = (f"{value:.{digits}f}" for digits in (4, 6))
    rest = f"1 − {1 - value:.0e}"
    return _signed(next((t for t in texts if value >= 1 or float(t) < 1), rest))


def times(value: float | None) -> str:
    """A ratio: `2.41×`."""
    return DASH if value is None else f"{_significant(value)}×"


def span(before: str, after: str) -> str:
    """Two texts with an arrow between; a unit they share is written once."""
    number, _, unit = before.rpartition(" ")
    return f"{number if number and after.endswith(f' {unit}') else before} → {after}"


def number(value: float | None) -> str:
    """A figure of unknown kind, to four significant digits."""
    if value is None:
        return DASH
    if float(value).is_integer() and abs(value) < 1e15:
        return _signed(f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}")
    return _signed(f"{value:,.1f}" if abs(value) >= 10_000 else f"{value:.4g}")


_AMOUNTS: dict[str, Formatter] = {
    **{"bytes": size, "macs": macs},
    **dict.fromkeys(("params", "parameters"), count),
}
"""By the last word of a key, for whole numbers only: `macs: 0.75` is a fraction."""

_MEASURES: dict[str, Formatter] = {
    "seconds": seconds,
    "ms": milliseconds,
    "kl": nats,
    "error": ratio,
    **dict.fromkeys(("top1", "top5", "map", "knn", "agreement"), percent),
    "speedup": times,
}


_ABBREVIATIONS = {"kl": "KL", "macs": "MACs", "lrp": "LRP", "mlp": "MLP", "onnx": "ONNX"}


def label(key: str) -> str:
    """A key of the report as words: `weight_error` as `weight error`, `held_back_kl` as `held back
    KL`."""
    return " ".join(_ABBREVIATIONS.get(word, word) for word in key.split("_"))


def value(item: Any, key: str = "") -> str:
    """Any plain value; the last word of its `key` tells the unit."""
    if item is None:
        return DASH
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, (int, float)):
        unit = key.replace(".", "_").rpartition("_")[2]
        known = _AMOUNTS if isinstance(item, int) else _MEASURES
        return known.get(unit, _MEASURES.get(unit, number))(item)
    if isinstance(item, dict):
        return ", ".join(f"{label(k)} {value(v, k)}" for k, v in item.items()) or DASH
    if isinstance(item, list):
        return ", ".join(value(each, key) for each in item) or DASH
    return str(item) or DASH


def folded(names: Iterable[str]) -> str:
    """Names that differ in their last number alone as one, with how many they are:
    `blocks.0-11.mlp.fc1 (12), head`."""
    found = dict[tuple[str, str], list[int]]()
    for name in names:
        parts = name.split(".")
        at = max((i for i, part in enumerate(parts) if part.isdecimal()), default=None)
        ends = (name, "") if at is None else (".".join(parts[:at]), ".".join(parts[at + 1 :]))
        found.setdefault(ends, []).extend([] if at is None else [int(parts[at])])
    return ", ".join(
        ".".join(filter(None, (start, _ranges(numbers), end)))
        + (f" ({len(numbers)})" if len(numbers) > 1 else "")
        for (start, end), numbers in found.items()
    )


def _ranges(numbers: list[int]) -> str:
    """`0-3,5` of 0, 1, 2, 3 and 5."""
    runs = groupby(enumerate(sorted(set(numbers))), key=lambda each: each[1] - each[0])
    ends = ([number for _, number in run] for _, run in runs)
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in ends)
