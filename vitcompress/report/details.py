"""What a stage tells, as it is shown: the facts on one list, and the charts of its tables."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeGuard

from vitcompress.details import Column, Fact, Table
from vitcompress.report import format as fmt
from vitcompress.report.model import Details

_EXTREMES: tuple[tuple[str, Callable[..., str]], ...] = (("lowest", min), ("highest", max))


@dataclass(frozen=True)
class Chart:
    """Values by group (x) and series (colour); `values[series]` runs along `groups`."""

    name: str
    groups: list[str]
    values: dict[str, list[float | None]]
    column: Column

    @property
    def caption(self) -> str:
        """What it shows, in words with the unit."""
        told = self.column.caption or fmt.label(self.column.name)
        return told if "block" in told else f"{told}, by block"

    @property
    def told(self) -> str:
        """The same and its extremes, for those who do not see it."""
        values = {
            f"{group} {series}".strip(): value
            for series, row in self.values.items()
            for group, value in zip(self.groups, row, strict=True)
            if value is not None
        }
        ends = ((word, pick(values, key=values.__getitem__)) for word, pick in _EXTREMES)
        unit = self.column.unit or self.column.name
        return f"{self.caption}; " + ", ".join(
            f"{word} {fmt.value(values[where], unit)} in {where}" for word, where in ends
        )


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
            yield Chart(table.name, groups, series, column)


def _numbers(table: Table, column: Column) -> list[float | None]:
    values = (row.get(column.name) for row in table.rows)
    return [value if _is_number(value) else None for value in values]


def _split(layer: str) -> tuple[str, str]:
    """A layer name as block and kind: `blocks.3.attn.qkv` is (`3`, `qkv`); of what is in no block,
    its part of the model: `head.fc` is (`head`, ``), and `head.2` stays whole; `blocks.3` is (`3`,
    ``)."""
    numbers = re.findall(r"(?<![^.])\d+(?![^.])", layer)
    last = layer.rpartition(".")[2]
    if not numbers:
        return layer.partition(".")[0], ""
    if last == numbers[-1]:
        return (".".join(numbers) if "blocks" in layer.split(".") else layer), ""
    return ".".join(numbers), last


def _is_number(value: Fact) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
