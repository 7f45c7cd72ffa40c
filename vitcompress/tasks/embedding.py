"""A direction in space: images are alike where their outputs point the same way.

Outputs are [n, width], or [n, tokens, width]: then each token has a direction of its own.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from vitcompress.tasks import Measure, Task, all_images, classification

_NEIGHBOURS = 5
_ROWS = 1024  # of the table of all pairs at a time


def _direction(output: Tensor) -> Tensor:
    """Outputs at length one; NaN for an output of zeros, which has no direction."""
    length: Tensor = output.norm(dim=-1, keepdim=True)
    return output / length


def distance(output: Tensor, dense: Tensor) -> Tensor:
    """1 − cosine, both [n, ..., width] → [n], mean over tokens where there are any."""
    # As half the square of a difference, small angles are not lost to rounding.
    between: Tensor = (_direction(output) - _direction(dense)).square().sum(-1) / 2
    return between.reshape(len(output), -1).mean(1)


def readout(output: Tensor, generator: torch.Generator) -> Tensor:
    """What is normal noise v across the direction f̂ of f: (I − f̂f̂ᵀ) v / |f|."""
    output = output.detach()
    direction = _direction(output)
    noise = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
    across = noise - direction * (noise * direction).sum(-1, keepdim=True)
    length: Tensor = output.norm(dim=-1, keepdim=True)
    tokens = output[0, ..., 0].numel()
    return across / length / math.sqrt(tokens)


def explained(output: Tensor) -> Tensor:
    """The output along its own direction, which is held: [n, ..., width] → [n]."""
    return (output * _direction(output.detach())).flatten(1).sum(1)


def cosine(outputs: Tensor, dense: Tensor) -> float:
    """Mean cosine to the outputs of the dense model."""
    return 1 - float(distance(outputs, dense).mean())


def cosine_p5(outputs: Tensor, dense: Tensor) -> float:
    """The 5th percentile of the cosines."""
    return 1 - float(distance(outputs, dense).quantile(0.95))


def norm_ratio(outputs: Tensor, dense: Tensor) -> float:
    """The mean length over that of the dense model's, which no cosine tells."""
    return float((outputs.norm(dim=-1) / dense.norm(dim=-1)).mean())


def neighbours(outputs: Tensor, dense: Tensor) -> float | None:
    """Percent of the images whose nearest other one is the dense model's; None below three."""
    if len(outputs) < 3:
        return None
    return 100 * float((nearest_images(outputs, 1) == nearest_images(dense, 1)).double().mean())


def knn(outputs: Tensor, labels: Tensor) -> float | None:
    """Percent of the images whose label [n] most of the five nearest others have.

    Of labels that are equally frequent among these, the one met first counts. An image whose label
    no other has is not counted, and there is no figure where none is left, or all have one label.
    """
    shared = _shared(labels)
    if len(labels.unique()) < 2 or not shared.any():
        return None
    near = labels[nearest_images(outputs, min(_NEIGHBOURS, len(outputs) - 1))]
    votes = (near[:, :, None] == near[:, None, :]).sum(-1)
    named = near.gather(1, votes.argmax(1, keepdim=True))[:, 0]
    return 100 * float((named == labels)[shared].double().mean())


def _shared(labels: Tensor) -> Tensor:
    """Whether another image has the label, [n] → bool [n]."""
    _, label, images = labels.unique(return_inverse=True, return_counts=True)
    shared: Tensor = images[label] > 1
    return shared


def _with_shared_label(outputs: Tensor, labels: Tensor) -> int:
    return int(_shared(labels).sum())


def nearest_images(outputs: Tensor, count: int) -> Tensor:
    """By image, the `count` others nearest to it by cosine, nearest first: [n, count].

    Of those equally near, the first in order.
    """
    points = _direction(outputs).flatten(1).double()
    found = []
    for rows in torch.arange(len(points)).split(_ROWS):
        likeness = (points[rows] @ points.T).round(decimals=12)  # equal images tie exactly
        at = torch.arange(len(rows))
        likeness[at, rows] = -torch.inf
        chosen = []
        for _ in range(count):
            chosen.append(likeness.argmax(1))
            likeness[at, chosen[-1]] = -torch.inf
        found.append(torch.stack(chosen, 1))
    return torch.cat(found)


TASK = Task(
    name="embedding",
    means="an embedding: compare two by their cosine",
    needs="no head, or one of two outputs or more",
    fits=lambda outputs: outputs != 1,
    labels="any classes",
    distance=distance,
    readout=readout,
    explained=explained,
    against_dense={
        "cosine": cosine,
        "cosine_p5": cosine_p5,
        "neighbours": neighbours,
        "norm_ratio": norm_ratio,
    },
    against_labels={"knn": knn},
    rates={"neighbours": all_images, "knn": _with_shared_label},
)


def zero_shot(classes: Tensor) -> Task:
    """The task with the figures of a classification besides, by embeddings of classes
    [classes, width]: the class of an image is the one whose embedding points most its way."""
    directions = _direction(classes.double())

    def by_class(measure: Measure) -> Measure:
        return lambda outputs, labels: measure(_direction(outputs) @ directions.T, labels)

    def between(measure: Measure) -> Measure:
        return lambda outputs, dense: measure(
            _direction(outputs) @ directions.T, _direction(dense) @ directions.T
        )

    of_labels = classification.TASK.against_labels
    return replace(
        TASK,
        labels="classes",
        against_labels={
            **{name: by_class(measure) for name, measure in of_labels.items()},
            **TASK.against_labels,
        },
        against_dense={"agreement": between(classification.agreement), **TASK.against_dense},
        rates={**classification.TASK.rates, **TASK.rates},
        answers=lambda outputs: (_direction(outputs) @ directions.T).argmax(-1),
    )
