"""How long stages take: what they compute, in passes through the model and in closed forms, by
counts that were measured, times what both take here."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitcompress.model.architecture import VitModel

_SOLVES = 40.0  # matrix products that the closed forms of a layer take as long as
_MOST_MACS = 1e11  # of a model that is tried, for an image: some seconds of one thread
_TRIED, _SHORT = 4, 0.25  # images, where one takes less than so many seconds
_SIDE = 768  # of the matrices that are tried


class Work(NamedTuple):
    """`passes`: of one image forward through the model as it reaches the stage. `products`:
    multiply-accumulates of products of float64 matrices that take as long as all closed forms."""

    passes: float = 0.0
    products: float = 0.0


class Speed(NamedTuple):
    """Seconds of one pass of the dense model, and of one multiply-accumulate in float64."""

    a_pass: float
    product: float

    def seconds(self, work: Work, share: float) -> float:
        """`share`: of the dense model's multiply-accumulates that are left when a stage begins."""
        return work.passes * self.a_pass * share + work.products * self.product


def solving(layers: Iterable[nn.Linear], times: float = 1.0) -> float:
    """The `products` of rounding, pruning or refitting these layers so many `times`."""
    sizes = ((each.in_features, each.out_features) for each in layers)
    return times * _SOLVES * sum(k * k * (k + n) for k, n in sizes)


@torch.no_grad()
def speed(model: VitModel, macs: int) -> Speed | None:
    """That of this processor with the dense `model`; None where `macs`, those of an image, are so
    many that trying takes too long."""
    if macs > _MOST_MACS:
        return None
    pixels = torch.zeros(_TRIED, model.preprocess.channels, *model.preprocess.input_size)
    matrix = torch.ones(_SIDE, _SIDE, dtype=torch.float64)

    def taken(images: Tensor) -> float:
        start = time.perf_counter()
        model.module(images)
        return (time.perf_counter() - start) / len(images)

    first = taken(pixels[:1])  # slower than those after it
    a_pass = min(taken(pixels) for _ in range(2)) if first < _SHORT else first
    start = time.perf_counter()
    torch.mm(matrix, matrix)
    return Speed(a_pass, (time.perf_counter() - start) / _SIDE**3)
