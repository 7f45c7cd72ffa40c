"""Drawn from 0 to 1: the baseline that every other has to beat."""

import torch

from vitcompress.stages.quantize.scores import Score, Scored


def drawn(scored: Scored) -> list[float]:
    generator = torch.Generator().manual_seed(scored.context.seed)
    found: list[float] = torch.rand(len(scored.names), generator=generator).tolist()
    return found


SCORE = Score(drawn)
