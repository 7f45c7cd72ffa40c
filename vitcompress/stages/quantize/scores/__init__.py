"""Scores: what each layer counts for the output of a model. One file a score, found by its name.

A file has a `SCORE`. Another score is another file: the recipe, the report and `sensitivity`
follow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from torch import Tensor

from vitcompress import parallel, registry
from vitcompress.details import Gallery
from vitcompress.model.anatomy import Anatomy
from vitcompress.model.architecture import VitModel
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.observe import Loss, Watch, observe, unlabelled
from vitcompress.tasks import Task

PACKAGE = __name__

_IMAGES = 64


@dataclass(frozen=True)
class Scored:
    """The layers `names` of a float model, and what a score may know of them.

    `probed`: name of a layer → the measured distance of the model with this layer alone rounded,
    for each share of error in the layer's output.
    """

    anatomy: Anatomy
    names: Sequence[str]
    task: Task
    context: Context
    probed: Callable[[str], float]

    def gradients(self, collect: Callable[[str, Tensor, Tensor], float], loss: Loss) -> list[float]:
        """The sums of what `collect` makes of (name, output, gradient) of each batch, by layer.

        Of some images, on average; a layer that no gradient reaches counts nothing.
        """
        totals = dict.fromkeys(self.names, 0.0)

        def add(name: str, _: Tensor, y: Tensor, gradient: Tensor | None) -> None:
            if gradient is not None:
                totals[name] += collect(name, y, gradient)

        pixels = self.context.calibration_batches("scoring layers", _IMAGES)
        images = observe(
            placed(self.anatomy.module, self.context.device),
            [Watch(name, partial(add, name), "output") for name in self.names],
            unlabelled(batch.to(self.context.device) for batch in pixels),
            loss,
        )
        shares = parallel.everybody((images, list(totals.values())))
        whole = sum(images for images, _ in shares)
        return [sum(each) / whole for each in zip(*(own for _, own in shares), strict=True)]


@dataclass(frozen=True)
class Score:
    """What layers count.

    `measure`: a figure for each layer in the order of `Scored.names`, at least 0; only ratios mean
    something. Times the mean squared error of a layer's output as a share of its variance, it
    is in proportion to what the error does to the model's output. `gradients`: whether it takes
    those of the model, which a quantized layer does not give. `power`: that turns the figures into
    factors of errors. `column`: the name of a column of the figures themselves, if they have one.
    `pictures`: of (the model before, the model after) where the score has decided.
    """

    measure: Callable[[Scored], Sequence[float]]
    gradients: bool = False
    power: float = 1.0
    column: str | None = None
    pictures: Callable[[VitModel, VitModel, Context], Gallery] | None = None


ESTIMATED = 0.5
"""The `power` of scores that estimate what errors of a layer cost: they are right in direction and
exaggerate, so half way to counting alike, on a scale of logarithms, comes nearest to the measured
distances of layers rounded one at a time."""


def score_of(name: str) -> Score:
    return cast(Score, registry.load_module(PACKAGE, name).SCORE)
