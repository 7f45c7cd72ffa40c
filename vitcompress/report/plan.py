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

    `memory_bytes`: what the whole run will hold at most, roughly. `estimated_seconds`: what the
    stage would take here, roughly; None where nothing tells.
    """

    stage: str
    macs: int
    bytes: int
    memory_bytes: int
    details: Details
    estimated_seconds: float | None


def shown(rows: Sequence[Planned], took: Took) -> Iterator[RenderableType]:
    """What stages would leave, which layers they change, and what they `took` in an earlier run."""
    table = Grid("after stage", "computes", "tensors", "takes", "what")
    for row in rows:
        facts = ((fmt.label(key), fmt.value(v, key)) for key, v in row.details.facts.items())
        what = ", ".join(map(" ".join, facts))
        time = "" if row is rows[0] else _time(row, took)
        table.add_row(row.stage, fmt.macs(row.macs), fmt.size(row.bytes), time, what)
    yield table
    for row in rows:
        for found in (each for each in row.details.tables if each.name == "layers"):
            names = fmt.folded(str(layer["layer"]) for layer in found.rows)
            yield f"{row.stage}: {names}"
    yield f"a run needs about {fmt.size(max(row.memory_bytes for row in rows))} of memory"
    if took.peak_bytes is not None:
        yield f"the run that took so long held at most {fmt.size(took.peak_bytes)} of memory"
    if len(rows) > 1:
        yield from _total(rows[1:], took)


def _time(row: Planned, took: Took) -> str:
    """What the stage took, or about what it would take."""
    if (known := took.seconds.get(row.stage)) is not None:
        return fmt.seconds(known)
    return (
        fmt.DASH if row.estimated_seconds is None else f"about {fmt.roughly(row.estimated_seconds)}"
    )


def _total(stages: Sequence[Planned], took: Took) -> Iterator[str]:
    """What all `stages` take together, and what that leaves out."""
    seconds = [took.seconds.get(each.stage, each.estimated_seconds) for each in stages]
    known = [each for each in seconds if each is not None]
    left_out = [each.stage for each, time in zip(stages, seconds, strict=True) if time is None]
    if known:
        timed = took.seconds.keys() >= {each.stage for each in stages}
        rests = "as in the earlier run" if timed else "by one small batch that was tried"
        but = f" but {', '.join(left_out)}" if left_out else ""
        yield (
            f"the stages{but} take about {fmt.roughly(sum(known))}, {rests}; exports, evaluation "
            "and timing are not in it"
        )
    else:
        yield f"time is not estimated: nothing tells what {', '.join(left_out)} takes"
