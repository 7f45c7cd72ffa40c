"""The Fisher information at a layer's output: squared gradients times the output's variance."""

import torch
from torch import Tensor

from vitcompress.stages.observe import readout_loss
from vitcompress.stages.quantize.scores import ESTIMATED, Score, Scored


def information(scored: Scored) -> list[float]:
    """The squared gradient of the task's read-out times the variance of each feature, summed over
    features and tokens: twice the distance that an error of the output's own variance makes."""

    def of(_: str, y: Tensor, gradient: Tensor) -> float:
        variance = y.flatten(0, -2).var(0, correction=0)
        return float(gradient.flatten(0, -2).square().sum(0) @ variance)

    generator = torch.Generator().manual_seed(scored.context.seed)
    return scored.gradients(of, readout_loss(scored.task, generator))


SCORE = Score(information, gradients=True, power=ESTIMATED, column="fisher")
