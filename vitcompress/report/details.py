"""What a stage tells, as it is shown: the facts on one list, and the charts of its tables."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

from vitcompress.details import Column, Fact, Table
from vitcompress.report.model import Details


@dataclass(frozen=True)
class Chart:
    """Values by group (x) and series (colour); `values[series]` runs along `groups`."""

    name: str
    groups: list[str]
    values: dict[str, list[float | None]]
    column: Column
    by: str = ""


def stage_facts(details: Details) -> list[tuple[str, Fact]]:
    """The facts of a stage, and those of what it studied beside."""
    told = list(details.facts.items())
    for study in details.studies:
        measured = study.figures.model_dump(exclude_none=True, exclude={"intervals"})
        own = {"note": study.note, **study.facts, **measured}
        told += [(f"{study.name}.{key}", value) for key, value in own.items()]
    return told


def numeric(table: Table, column: Column) -> bool:
    """Whether every value present in `column` is a number."""
    found = [row[column.name] for row in table.rows if row.get(column.name) is not None]
    return bool(found) and all(map(_is_number, found))


def peak(table: Table, column: Column) -> float:
    """The largest magnitude in `column`, whose values are numbers."""
    return max((abs(value) for value in _numbers(table, column) if value is not None), default=0)


def charts(table: Table) -> Iterator[Chart]:
    """Of a table whose first column names layers or blocks, a chart of each column that is worth
    one and varies."""
    if len(table.rows) < 2 or not table.columns:
        return
    first, *others = table.columns
    split = [_split(str(row.get(first.name, ""))) for row in table.rows]
    if len(set(split)) < len(split):
        return
    for column in (c for c in others if c.chart and numeric(table, c)):
        values = _numbers(table, column)
        if len(set(values)) > 1:
            groups = list(dict.fromkeys(block for block, _ in split))
            by_place = dict(zip(split, values, strict=True))
            series = {
                kind: [by_place.get((block, kind)) for block in groups]
                for kind in dict.fromkeys(kind for _, kind in split)
            }
            yield Chart(table.name, groups, series, column, by="block")


def _numbers(table: Table, column: Column) -> list[float | None]:
    values = (row.get(column.name) for row in table.rows)
    return [value if _is_number(value) else None for value in values]


def _split(layer: str) -> tuple[str, str]:
    """A layer name as block and kind: `blocks.3.attn.qkv` is (`3`, `qkv`); of what is in no block,
    its part of the model: `head.fc` is (`head`, ``), and `head.2` stays whole."""
    numbers = re.findall(r"(?<![^.])\d+(?![^.])", layer)
    last = layer.rpartition(".")[2]
    if not numbers:
        return layer.partition(".")[0], ""
    return (layer, "") if last == numbers[-1] else (".".join(numbers), last)


def _is_number(value: Fact) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
