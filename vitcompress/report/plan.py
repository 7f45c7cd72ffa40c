"""What a chain of stages would do, as it is shown before it is run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table as Grid

from vitcompress.pace import Took
from vitcompress.report import format as fmt
from vitcompress.report.model import Details


@dataclass(frozen=True)
class Planned:
    """What a stage would leave: multiply-accumulates, stored bytes, and what is known of it.

    `memory_bytes`: what the whole run will hold at most, roughly.
    """

    stage: str
    macs: int
    bytes: int
    memory_bytes: int
    details: Details


def shown(rows: Sequence[Planned], took: Took) -> Iterator[RenderableType]:
    """What stages would leave, which layers they change, and what they `took` in an earlier run."""
    heads = ["after stage", "computes", "tensors", *(["took"] if took.seconds else []), "what"]
    table = Grid(*heads)
    for row in rows:
        facts = ((fmt.label(key), fmt.value(v, key)) for key, v in row.details.facts.items())
        before = [fmt.seconds(took.seconds.get(row.stage))] if took.seconds else []
        what = ", ".join(map(" ".join, facts))
        table.add_row(row.stage, fmt.macs(row.macs), fmt.size(row.bytes), *before, what)
    yield table
    for row in rows:
        for found in (each for each in row.details.tables if each.name == "layers"):
            names = fmt.folded(str(layer["layer"]) for layer in found.rows)
            yield f"{row.stage}: {names}"
    yield f"a run needs about {fmt.size(max(row.memory_bytes for row in rows))} of memory"
    if took.peak_bytes is not None:
        yield f"the run that took so long held at most {fmt.size(took.peak_bytes)} of memory"
    if not took.seconds:
        yield (
            "time is not estimated, as machine and images decide on it: with --out, an earlier "
            "output of these stages tells what they took"
        )
