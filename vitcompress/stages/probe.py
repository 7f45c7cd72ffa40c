"""What a change of a model does to its output, on a few images.

Only what lies behind the change is computed, from the states that entered each step before it,
which are kept in a file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vitcompress.model.anatomy import Anatomy, State
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.states import StateFile
from vitcompress.tasks import Task

_IMAGES, _BATCH = 32, 8  # to compare layers on; of small batches, so that races end early

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

    `batches` must be where the models are. The states kept are those of the *incumbent*, the model
    as it was at first, until a change is accepted. Memory holds the outputs of the dense model
    alone.
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
        self.dense: list[Tensor] = []
        for pixels in batches:
            self._states.put(("pixels", len(self.dense)), State(pixels))
            own = self._output(Change(anatomy, None), len(self.dense), keep=True)
            self.dense.append(own if reference is None else reference(pixels))

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
        outputs = (module(self._pixels(batch)) for batch in range(len(self.dense)))
        pairs = zip(outputs, self.dense, strict=True)
        return torch.cat([self.distance(*pair) for pair in pairs])

    def distances(self, change: Change, rival: Tensor | None = None) -> Tensor | None:
        """The distance of each image.

        None as soon as it is clear that the mean is above that of `rival`, distances of another
        change: by more than its standard error, from the second batch on.
        """
        found: list[Tensor] = []
        for batch, dense in enumerate(self.dense):
            found.append(self.distance(self._output(change, batch), dense))
            if rival is not None and len(found) > 1:
                so_far = torch.cat(found)
                worse = so_far - rival[: len(so_far)]
                if worse.mean() > worse.std() / len(worse) ** 0.5:
                    return None
        return torch.cat(found)

    def accept(self, change: Change) -> Tensor:
        """Make `change` the new incumbent; returns the distance of each image."""
        self.anatomy = change.anatomy
        pairs = enumerate(self.dense)
        found = [self.distance(self._output(change, i, keep=True), dense) for i, dense in pairs]
        return torch.cat(found)

    @contextmanager
    def replaced(self, changed: Mapping[str, nn.Module]) -> Iterator[Change]:
        """The incumbent with other modules, by name, inside; afterwards it is as it was."""
        module, before = self.anatomy.module, dict[str, nn.Module]()
        first = first_changed(self.anatomy, changed)
        try:
            for name, new in changed.items():
                before[name] = module.get_submodule(name)
                module.set_submodule(name, placed(new, self.dense[0].device))
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
    pixels = torch.cat(list(context.calibration_batches("reading images", _IMAGES)))
    anatomy = anatomy_of(placed(anatomy.module, context.device))
    return Probe(anatomy, pixels.to(context.device).split(_BATCH), task.distance)


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
