"""The share that w² has of itself and all larger weights of its layer (2404.13648, as in LAMP).

That makes layers comparable without images; the largest weight has 1.
"""

import torch
from torch import Tensor

from vitcompress.stages.sparsify.criteria import Asked, by_score


def score(asked: Asked) -> Tensor:
    square = asked.weight.double().square()
    ordered, places = square.flatten().sort()
    share = ordered / ordered.flip(0).cumsum(0).flip(0).clamp_min(1e-300)
    return torch.empty_like(share).scatter_(0, places, share).view_as(square)


CRITERION = by_score(score)
