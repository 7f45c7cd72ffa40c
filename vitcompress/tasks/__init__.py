"""Tasks: what the output of a model means. One file a task, found by its name.

A file has a `TASK`. Another task is another file: the recipe, the gates and the report follow.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from vitcompress import registry
from vitcompress.errors import InputError

PACKAGE = __name__

Measure = Callable[[Tensor, Tensor], float | None]
"""Outputs [n, ...] and what they are held against → one figure, None where it means nothing."""

Counted = Callable[[Tensor, Tensor], int]
"""Of what a `Measure` takes: how many images its figure is a share of."""

Labels = Literal["classes", "two classes", "any classes", "matrix", "none"]
"""What labels a task can use: a class an image out of as many as there are outputs, out of two, or
out of any number; 0 or 1 for each output; or none at all."""


@dataclass(frozen=True)
class Task:
    """What the output of a model means.

    `means`: in words, what an output says. `needs`: in words, what `fits`, which says whether a
    model of so many outputs (0: it has no head) can have this task. `labels`: those that figures
    need.

    `distance`: (output, dense), both [n, ...] → [n], at least 0: nats, or the like. NaN stays NaN.
    `readout`: (output, generator) → weights like the output, so that gradients of Σ weights ×
    output have the second derivative of `distance` at the output as their mean outer product.
    `explained`: output → [n], the number that relevance is propagated from.
    `against_dense`: figures by name, from the outputs of a model and those of the dense one.
    `against_labels`: figures from outputs and labels, [n] or [n, outputs].
    `expected_drops`: by figure of `against_labels`, by how much it is lower than that of the dense
    model, from the outputs of both alone.
    `rates`: the figures that are a share of images, and of how many: their sampling error is known.
    `answers`: outputs → the class that each names, int64 [n]; None where they name none.
    """

    name: str
    means: str
    needs: str
    fits: Callable[[int], bool]
    labels: Labels
    distance: Callable[[Tensor, Tensor], Tensor]
    readout: Callable[[Tensor, torch.Generator], Tensor]
    explained: Callable[[Tensor], Tensor]
    against_dense: Mapping[str, Measure]
    against_labels: Mapping[str, Measure]
    expected_drops: Mapping[str, Measure] = field(default_factory=dict)
    rates: Mapping[str, Counted] = field(default_factory=dict)
    answers: Callable[[Tensor], Tensor] | None = None

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of all figures."""
        return (*self.against_labels, *self.against_dense)

    @property
    def word(self) -> str:
        """What a distance is called in tables: some tasks measure it in KL."""
        return "kl" if "kl" in self.against_dense else "distance"

    @property
    def distance_words(self) -> str:
        """As `word`, for a caption, with the unit."""
        return "KL in nats" if self.word == "kl" else "Distance"

    def compared(self, outputs: Tensor, dense: Tensor) -> dict[str, float | None]:
        """The figures of `outputs` against those of the dense model, both [n, ...].

        They are NaN where any output of either is not finite.
        """
        return _figures(self.against_dense, outputs, dense)

    def judged(self, outputs: Tensor, labels: Tensor) -> dict[str, float | None]:
        """The figures of `outputs` [n, ...] against `labels`; NaN as in `compared`."""
        return _figures(self.against_labels, outputs, labels)

    def counted(self, among: Collection[str], outputs: Tensor, reference: Tensor) -> dict[str, int]:
        """Of the rates `among` the figures: of how many images each is a share."""
        return {n: count(outputs, reference) for n, count in self.rates.items() if n in among}


def all_images(outputs: Tensor, reference: Tensor) -> int:
    """Of a rate that counts every image: how many there are."""
    return len(outputs)


def _figures(
    figures: Mapping[str, Measure], outputs: Tensor, reference: Tensor
) -> dict[str, float | None]:
    if not (outputs.isfinite().all() and reference.isfinite().all()):
        return dict.fromkeys(figures, math.nan)
    if reference.is_floating_point():
        reference = reference.double()
    return {name: figure(outputs.double(), reference) for name, figure in figures.items()}


def not_negative(distance: Tensor) -> Tensor:
    """`distance` without what rounding leaves below zero; gradients pass as if it were not done."""
    return distance - distance.detach().clamp(max=0)


def infer(outputs: int) -> str:
    """The name of the task of a model of which nothing is said; `outputs`: 0 without a head."""
    return {0: "embedding", 1: "one_logit"}.get(outputs, "classification")


def chosen(name: str | None, outputs: int) -> Task:
    """The task `name`, by default the inferred one, of a model with so many `outputs`.

    Raises `InputError` where such a model cannot have it.
    """
    task = _task(name or infer(outputs))
    if not task.fits(outputs):
        fitting = [n for n in registry.names(PACKAGE) if _task(n).fits(outputs)]
        has = f"{outputs} output{'s' * (outputs > 1)}" if outputs else "no head"
        raise InputError(
            f"task: {task.name} needs {task.needs}, and the model has {has}; "
            f"give {' or '.join(fitting)}, or leave it out for {infer(outputs)}"
        )
    return task


def figures_against_dense() -> frozenset[str]:
    """The names of the figures against the dense model, of all tasks."""
    return frozenset(f for name in registry.names(PACKAGE) for f in _task(name).against_dense)


def _task(name: str) -> Task:
    return cast(Task, registry.load_module(PACKAGE, name).TASK)
