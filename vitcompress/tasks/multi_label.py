"""Any number of several properties: each output is the logit of one that is there or not."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompress.tasks import Task, not_negative


def distance(output: Tensor, dense: Tensor) -> Tensor:
    """Σ over outputs of the KL of Bernoulli variables in nats, both [n, ...] → [n]."""
    there = dense.sigmoid() * (F.logsigmoid(dense) - F.logsigmoid(output))
    not_there = (-dense).sigmoid() * (F.logsigmoid(-dense) - F.logsigmoid(-output))
    return not_negative((there + not_there).flatten(1).sum(1))


def readout(output: Tensor, generator: torch.Generator) -> Tensor:
    """√(p(1 − p)) times random signs; its covariance is the Fisher information diag(p(1 − p))."""
    shares = output.detach().cpu().sigmoid()
    signs = 2.0 * torch.randint(2, shares.shape, generator=generator) - 1
    return ((shares * (1 - shares)).sqrt() * signs).to(output.device)


def explained(output: Tensor) -> Tensor:
    """The sum of the positive logits; where none is positive, the largest."""
    output = output.flatten(1)
    largest = output.amax(1)
    return torch.where(largest > 0, output.clamp(min=0).sum(1), largest)


def kl(outputs: Tensor, dense: Tensor) -> float:
    """Mean over the images of the `distance` in nats."""
    return float(distance(outputs, dense).mean())


def agreement(outputs: Tensor, dense: Tensor) -> float:
    """Percent of all outputs that have the same sign in both."""
    return 100 * float(((outputs > 0) == (dense > 0)).double().mean())


def mean_average_precision(outputs: Tensor, labels: Tensor) -> float | None:
    """Mean average precision in percent; `labels` [n, outputs] are 0 or 1.

    The average precision of an output is the mean over its images labelled 1 of the share labelled
    1 among the images with at least the logit of that one. Outputs without such images do not
    count; None without any.
    """
    found = [
        _average_precision(logits, hits)
        for logits, hits in zip(outputs.T, labels.T.bool(), strict=True)
        if hits.any()
    ]
    return 100 * sum(found) / len(found) if found else None


def _average_precision(logits: Tensor, hits: Tensor) -> float:
    ascending, positives = logits.sort().values, logits[hits].sort().values
    above = len(ascending) - torch.searchsorted(ascending, positives)
    right = len(positives) - torch.searchsorted(positives, positives)
    return float((right / above).double().mean())


TASK = Task(
    name="multi_label",
    means="a logit for each label: its logistic function gives the probability of yes",
    needs="a head",
    fits=lambda outputs: outputs >= 1,
    labels="matrix",
    distance=distance,
    readout=readout,
    explained=explained,
    against_dense={"agreement": agreement, "kl": kl},
    against_labels={"map": mean_average_precision},
)
