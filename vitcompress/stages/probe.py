"""What a change of a model does to its output, on a few images.

Only what lies behind the change is computed, from the states that entered each step before it,
which are kept in a file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vitcompress import parallel
from vitcompress.model.anatomy import Anatomy, State
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.states import StateFile
from vitcompress.tasks import Task

PROBED = 32  # images to compare layers on
_BATCH = 8  # small, so that races end early

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of an output and that of the dense model, of the same images: how far they are apart, [n]."""


class Change(NamedTuple):
    """A model other than the one before, and the number of the first step that differs.

    Its steps up to there must give the states that those of the other gave. `first` is the number
    of steps where only the head differs, and None where everything may.
    """

    anatomy: Anatomy
    first: int | None


class Probe:
    """Distances from what a model gives for `batches` of pixels, as it was at first; or from what
    the `reference` gives, where there is one.

    `batches` must be where the models are; of several processes each has its own, dealt in turn.
    The states kept are those of the *incumbent*, the model as it was at first, until a change is
    accepted. Memory holds the outputs of the dense model alone.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        batches: Iterable[Tensor],
        distance: Distance,
        reference: nn.Module | None = None,
    ) -> None:
        self.anatomy, self.distance = anatomy, distance
        self._states = StateFile()
        self._device = next(iter(anatomy.module.state_dict().values())).device
        self.dense: list[Tensor] = []
        for pixels in batches:
            self._states.put(("pixels", len(self.dense)), State(pixels))
            own = self._output(Change(anatomy, None), len(self.dense), keep=True)
            self.dense.append(own if reference is None else reference(pixels))
        self._turns = max(parallel.everybody(len(self.dense)))

    def cost(self, changed: Mapping[str, nn.Module]) -> float:
        """The mean distance with the modules `changed`, by name, in the places of the model's.

        They may be anything from a layer to a step; where they are elsewhere, copies are moved to
        the images. The model is left as it was.
        """
        with self.replaced(changed) as change:
            return mean(cast(Tensor, self.distances(change)))

    def cost_of(self, module: nn.Module) -> float:
        """The mean distance with `module` in the place of the whole model."""
        return mean(self.distances_of(module))

    def distances_of(self, module: nn.Module) -> Tensor:
        """The distance of each image with `module` in the place of the whole model."""
        return torch.cat(list(self._of_all(lambda batch: module(self._pixels(batch)))))

    def distances(self, change: Change, rival: Tensor | None = None) -> Tensor | None:
        """The distance of each image.

        None as soon as it is clear that the mean is above that of `rival`, distances of another
        change: by more than its standard error, from the second batch on.
        """
        found: list[Tensor] = []
        for distances in self._of_all(lambda batch: self._output(change, batch)):
            found.append(distances)
            if rival is not None and len(found) > 1:
                so_far = torch.cat(found)
                worse = so_far - rival[: len(so_far)]
                if worse.mean() > worse.std() / len(worse) ** 0.5:
                    return None
        return torch.cat(found)

    def accept(self, change: Change) -> Tensor:
        """Make `change` the new incumbent; returns the distance of each image."""
        self.anatomy = change.anatomy
        return torch.cat(list(self._of_all(lambda batch: self._output(change, batch, keep=True))))

    def _of_all(self, output: Callable[[int], Tensor]) -> Iterator[Tensor]:
        """The distances of all batches in their order; `output`: that of a batch of this process.

        Each process computes one batch, then all exchange what they got.
        """
        for turn in range(self._turns):
            own = range(len(self.dense))[turn : turn + 1]
            yield from parallel.gathered(
                [self.distance(output(batch), self.dense[batch]) for batch in own]
            )

    @contextmanager
    def replaced(self, changed: Mapping[str, nn.Module]) -> Iterator[Change]:
        """The incumbent with other modules, by name, inside; afterwards it is as it was."""
        module, before = self.anatomy.module, dict[str, nn.Module]()
        first = first_changed(self.anatomy, changed)
        try:
            for name, new in changed.items():
                before[name] = module.get_submodule(name)
                module.set_submodule(name, placed(new, self._device))
            # Steps are modules, and some of them may be others now.
            yield Change(anatomy_of(module), first)
        finally:
            for name, old in reversed(before.items()):
                module.set_submodule(name, old)

    def _pixels(self, batch: int) -> Tensor:
        return self._states.get(("pixels", batch)).x

    def _output(self, change: Change, batch: int, keep: bool = False) -> Tensor:
        """What the changed model gives; with `keep`, the states behind the change are kept."""
        anatomy, first = change
        if first is None and not keep:
            return cast(Tensor, anatomy.module(self._pixels(batch)))
        if first is None:
            state, first = anatomy.start(self._pixels(batch)), 0
            self._states.put((0, batch), state)
        else:
            state = self._states.get((first, batch))
        for number in range(first, len(anatomy.steps)):
            state = anatomy.advance(number, state)
            if keep:
                self._states.put((number + 1, batch), state)
        return anatomy.finish(state)


def probe_of(anatomy: Anatomy, task: Task, context: Context) -> Probe:
    """A probe by the distance of `task`, on a few calibration images, enough to compare layers."""
    pixels = torch.cat(list(context.shared_batches("reading images", PROBED)))
    anatomy = anatomy_of(placed(anatomy.module, context.device))
    batches = parallel.dealt(pixels.to(context.device).split(_BATCH))
    return Probe(anatomy, batches, task.distance)


def probe_against_dense(model: VitModel, context: Context) -> Probe:
    """A probe of `model`, by its distance from the dense model of `context`, whose device it is on,
    on all calibration images."""
    dense = placed(context.dense.module, context.device)
    pixels = context.calibration_batches("answers of the dense model")
    batches = (batch.to(context.device) for batch in pixels)
    return Probe(model.anatomy, batches, model.task.distance, reference=dense)


def mean(distances: Tensor) -> float:
    return float(distances.double().mean())


def mean_root(distances: Tensor) -> float:
    """The mean of the square roots: of distances themselves a few images would decide."""
    return float(distances.double().sqrt().mean())


def first_changed(anatomy: Anatomy, names: Iterable[str]) -> int | None:
    """The number of the first step that any of the modules `names` lies in, as in `Change`."""
    first = len(anatomy.steps)
    if any(not step.name for step in anatomy.steps):
        return None  # the whole module is one step, its head included
    for name in names:
        step = anatomy.step_of(name)
        if step is not None:
            first = min(first, step)
        elif not anatomy.in_head(name):
            return None
    return first
