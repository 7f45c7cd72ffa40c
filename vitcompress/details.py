"""What a stage tells beside its model, as plain data: facts, tables and pictures."""

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Fact = str | int | float | bool | None
"""One value; a float is finite."""

Row = dict[str, Fact]
"""Values by column."""

Picture = Annotated[str, Field(pattern="^data:image/")]
"""A data URI: a page fetches nothing."""

_PLAIN = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_PLAIN)
class Column:
    """`unit`: that of the values, where the last word of `name` does not tell it. `chart`: whether
    it is worth a chart, in a table whose first column names layers, blocks or steps. `caption`:
    what such a chart shows, in words with the unit."""

    name: str
    unit: str = ""
    chart: bool = False
    caption: str = ""


@dataclass(frozen=True, config=_PLAIN)
class Table:
    """Rows of values by column; a row may lack some."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @classmethod
    def of(
        cls, name: str, rows: Iterable[Mapping[str, Fact]], charted: Mapping[str, str] | None = None
    ) -> "Table":
        """A table whose columns are the keys of `rows`, in the order in which they first appear.

        `charted`: the columns that are worth a chart, and the captions of these.
        """
        found = tuple(dict(row) for row in rows)
        keys = dict.fromkeys(key for row in found for key in row)
        captions = charted or {}
        columns = (Column(k, chart=k in captions, caption=captions.get(k, "")) for k in keys)
        return cls(name, tuple(columns), found)


@dataclass(frozen=True, config=_PLAIN)
class Pictures:
    """One row of a gallery: a caption, and a picture for each column."""

    caption: str
    sources: tuple[Picture, ...]


@dataclass(frozen=True, config=_PLAIN)
class Gallery:
    """Rows of pictures under named columns. `key`: what their colours mean, in words."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Pictures, ...]
    key: str = ""
