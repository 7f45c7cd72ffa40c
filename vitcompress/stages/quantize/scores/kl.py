"""Measured: how far the output moves, by the task's distance, with one layer rounded at a time."""

from vitcompress.console import track
from vitcompress.stages.quantize.scores import Score, Scored


def measured(scored: Scored) -> list[float]:
    layers = track(scored.names, "measuring layers", len(scored.names))
    return [scored.probed(name) for name in layers]


SCORE = Score(measured)
