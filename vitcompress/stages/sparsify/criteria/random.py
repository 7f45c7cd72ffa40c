"""Drawn from 0 to 1: the baseline that every other has to beat."""

import torch
from torch import Tensor

from vitcompress.stages.sparsify.criteria import Asked, by_score


def score(asked: Asked) -> Tensor:
    generator = torch.Generator().manual_seed(asked.seed)
    return torch.rand(asked.weight.shape, generator=generator).double()


CRITERION = by_score(score)
