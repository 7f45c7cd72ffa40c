"""What works on which family of models: family × stage, as it was found by planning each.

The file beside this one is written by `tests/benchmarks/families.py --write`; a test holds it
against what `plan` says.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

FILE = Path(__file__).with_suffix(".json")


class Support(BaseModel):
    """Of one kind of model, by stage: the line that refuses or skips it, None where it works."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    family: str
    stages: Mapping[str, str | None]


_ROWS = TypeAdapter(tuple[Support, ...])


@cache
def known() -> tuple[Support, ...]:
    return _ROWS.validate_json(FILE.read_bytes())


def write(rows: Sequence[Support]) -> None:
    """Make `rows` what is known."""
    FILE.write_bytes(_ROWS.dump_json(tuple(rows), indent=2) + b"\n")


def lines(rows: Sequence[Support]) -> list[str]:
    """All lines that refuse something, each once, in the order of the table."""
    return list(dict.fromkeys(line for row in rows for line in row.stages.values() if line))


def cells(rows: Sequence[Support]) -> list[list[str]]:
    """The table, its head first: "yes", or the number of the line that refuses it."""
    numbers = {line: number for number, line in enumerate(lines(rows), 1)}
    head = ["", *rows[0].stages]
    said = [[f"no ({numbers[li]})" if li else "yes" for li in row.stages.values()] for row in rows]
    return [head, *([row.model, *cell] for row, cell in zip(rows, said, strict=True))]


def markdown(rows: Sequence[Support]) -> str:
    """The table, and below it the lines that its numbers stand for."""
    head, *below = cells(rows)
    table = [head, ["---"] * len(head), *below]
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return text + "\n\n" + "\n".join(f"{i}. {li}" for i, li in enumerate(lines(rows), 1)) + "\n"
