"""How long the rest of a run may take, told only where something measured tells it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vitcompress.errors import InputError
from vitcompress.recipe import Recipe
from vitcompress.report.model import Report

PEAK = "peak_memory_bytes"
"""Where a report says how much memory the process held at most."""


@dataclass
class Pace:
    """`last`: seconds of the last step, which does for the compressed model what was done for the
    dense one, and times both. `known`: seconds by stage in an earlier run of the same model.
    `taken`: those in this run, which say how much faster or slower it is."""

    last: float
    known: Mapping[str, float]
    taken: dict[str, float] = field(default_factory=dict)

    def left(self, stages: Sequence[str]) -> float | None:
        """Seconds for these `stages` and the last step; None where one was never timed."""
        if not self.known.keys() >= set(stages):
            return None
        both = self.taken.keys() & self.known.keys()
        before = sum(self.known[name] for name in both)
        scale = sum(self.taken[name] for name in both) / before if before else 1.0
        return scale * sum(self.known[name] for name in stages) + self.last


class Took(NamedTuple):
    """`seconds` by stage, and the most memory that the process held (None: not known)."""

    seconds: Mapping[str, float] = {}
    peak_bytes: int | None = None


def took(run: Path | Report | None, recipe: Recipe, model: str) -> Took:
    """What the stages of `recipe` took in an earlier `run` of the same `model`.

    Stages that this run did not have are left out: all of them, where it is no run.
    """
    try:
        report = Report.read(run) if isinstance(run, Path) else run
    except InputError:
        return Took()
    if report is None or report.model.get("name") != model:
        return Took()
    wanted = {(stage.name, stage.type) for stage in recipe.stages}
    seconds = {s.name: s.seconds for s in report.stages if (s.name, s.type) in wanted}
    return Took(seconds, report.environment.get(PEAK) if seconds else None)
