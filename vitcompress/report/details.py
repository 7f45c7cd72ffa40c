"""A stage's `details`, sorted by shape: facts, tables and series. No stage is known by name."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LONG = 8
"""A mapping of more scalars than this is shown as a table, not as single facts."""

CHARTED = (
    *("output_error", "bits", "relevance", "fisher", "importance", "weight_bytes"),
    *("error_8", "error_6", "error_5", "error_4", "error_3", "error_2"),
    *("sparsity", "density", "kept", "width", "kl_if_halved"),
    *("kl", "kl_less_50%", "kl_at_80%"),
)
"""Columns worth a chart, wherever a table has one that varies."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns; a row may lack some."""

    name: str
    columns: list[str]
    rows: list[dict[str, Any]]

    def numeric(self, column: str) -> bool:
        """Whether every value present in `column` is a number."""
        found = [row[column] for row in self.rows if row.get(column) is not None]
        return bool(found) and all(map(_is_number, found))

    def peak(self, column: str) -> float:
        """The largest magnitude in `column`."""
        return max(
            (abs(row[column]) for row in self.rows if row.get(column) is not None), default=0
        )


@dataclass(frozen=True)
class Chart:
    """Values by group (x) and series (colour); `values[series]` runs along `groups`."""

    name: str
    groups: list[str]
    values: dict[str, list[float | None]]
    column: str
    by: str = ""


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures (data URIs) under named columns, each row with a caption."""

    name: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Sections:
    """What one `details` mapping holds."""

    facts: list[tuple[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)


def sections(details: Mapping[str, Any]) -> Sections:
    """Sort `details` into facts, tables, charts and galleries, by the shape of each value alone."""
    found = Sections()
    for key, value in details.items():
        _place(key, value, found)
    for table in found.tables:
        found.charts.extend(_layer_charts(table))
    return found


def _place(key: str, value: Any, found: Sections) -> None:
    if isinstance(value, Mapping) and value:
        if len(value) > LONG and all(map(_is_scalar, value.values())):
            column = _singular(key.rpartition(".")[2])
            rows = [{"layer": name, column: each} for name, each in value.items()]
            found.tables.append(Table(key, ["layer", column], rows))
            return
        for name, each in value.items():
            _place(f"{key}.{name}", each, found)
    elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        rows = [dict(_flat(row)) for row in value]
        if pictures := [key for key, item in rows[0].items() if _is_picture(item)]:
            captions = [
                " ".join(str(v) for v in row.values() if not _is_picture(v)) for row in rows
            ]
            shown = [[row[column] for column in pictures] for row in rows]
            found.galleries.append(Gallery(key, pictures, list(zip(captions, shown, strict=True))))
            return
        found.tables.append(Table(key, list(dict.fromkeys(k for row in rows for k in row)), rows))
    elif isinstance(value, list) and len(value) > 3 and _varied(value):
        found.charts.append(Chart(key, [str(i) for i in range(len(value))], {"": value}, key))
    else:
        found.facts.append((key, value))


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _layer_charts(table: Table) -> Iterator[Chart]:
    """A chart of each telling column of a table whose first column names layers or blocks."""
    if len(table.rows) < 2 or not table.columns:
        return
    name, *others = table.columns
    split = [_split(str(row.get(name, ""))) for row in table.rows]
    if len(set(split)) < len(split):
        return
    for column in (c for c in others if c in CHARTED and table.numeric(c)):
        values = [row.get(column) for row in table.rows]
        if len(set(values)) > 1:
            groups = list(dict.fromkeys(block for block, _ in split))
            by_place = dict(zip(split, values, strict=True))
            series = {
                kind: [by_place.get((block, kind)) for block in groups]
                for kind in dict.fromkeys(kind for _, kind in split)
            }
            yield Chart(table.name, groups, series, column, by="block")


def _split(layer: str) -> tuple[str, str]:
    """A layer name as block and kind: `blocks.3.attn.qkv` is (`3`, `qkv`); `head` (`head`, ``)."""
    numbers = re.findall(r"(?<![^.])\d+(?![^.])", layer)
    last = layer.rpartition(".")[2]
    return (".".join(numbers), "" if last == numbers[-1] else last) if numbers else (last, "")


def _singular(word: str) -> str:
    return "bits" if word == "bits" else word.removesuffix("s")


def _varied(values: Sequence[Any]) -> bool:
    """Whether `values` are numbers that differ."""
    return all(map(_is_number, values)) and len(set(values)) > 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("data:image/")


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, (Mapping, Sequence)) or isinstance(value, str)
