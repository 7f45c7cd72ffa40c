"""Quantities: each output is one, in a unit of its own."""

import torch
from torch import Tensor

from vitcompress.tasks import Task


def _variance(dense: Tensor) -> Tensor:
    """The variance of each output over the images; of outputs that do not vary (as of a single
    image) their square."""
    varied = dense.detach().var(0, correction=0)
    return torch.where(varied > 0, varied, dense.detach().square().mean(0))


def distance(output: Tensor, dense: Tensor) -> Tensor:
    """Σ over outputs of ½ (f − g)² / variance of f over the images, both [n, ...] → [n].

    In nats, the KL between normal distributions around both that are as wide as outputs vary.
    """
    return 0.5 * ((output - dense).square() / _variance(dense)).flatten(1).sum(1)


def readout(output: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs over the standard deviation of each output."""
    signs = 2.0 * torch.randint(2, output.shape, generator=generator) - 1
    return signs.to(output.device) / _variance(output).sqrt()


def explained(output: Tensor) -> Tensor:
    """The sum of magnitudes, [n, ...] → [n]."""
    return output.flatten(1).abs().sum(1)


def relative_error(outputs: Tensor, dense: Tensor) -> float:
    """The mean square of the differences over the variance, mean over outputs: 1 − R²."""
    return float(2 * distance(outputs, dense).mean() / dense[0].numel())


TASK = Task(
    name="regression",
    means="the values themselves",
    needs="a head",
    fits=lambda outputs: outputs >= 1,
    labels="none",
    distance=distance,
    readout=readout,
    explained=explained,
    against_dense={"relative_error": relative_error},
    against_labels={},
)
