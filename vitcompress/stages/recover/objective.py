"""What is trained towards: to answer as the dense model does, with features like its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcompress.methods.readers import normalised
from vitcompress.methods.tokens import means
from vitcompress.model.anatomy import Anatomy, State, unmoved

_EVERY = 3


def compared_steps(dense: Anatomy) -> frozenset[int]:
    """The steps whose states are compared: one in `_EVERY`, the last among them.

    None where it is not known what the steps are.
    """
    return frozenset(range(len(dense.steps) - 1, -1, -_EVERY)) if dense.blocks else frozenset()


@dataclass(frozen=True)
class Objective:
    """The loss of `student` against `dense`, on the same pixels.

    `distance`: that of the task. `features`: the weight of the mean squared error of the normed
    features behind the steps `compared`, a mean over these. `autocast`: the type to compute in.
    """

    student: Anatomy
    dense: Anatomy
    distance: Callable[[Tensor, Tensor], Tensor]
    features: float
    compared: frozenset[int]
    autocast: torch.dtype

    def loss(self, pixels: Tensor) -> Tensor:
        """A mean over the images, [] float32."""
        kind, enabled = pixels.device.type, self.autocast != torch.float32
        with torch.autocast(kind, self.autocast, enabled=enabled):
            with torch.no_grad():
                target, wanted = self._run(self.dense, pixels)
            output, found = self._run(self.student, pixels)
        loss = self.distance(output.float(), target.float()).mean()
        errors = [self._error(found[step], wanted[step]) for step in sorted(self.compared)]
        return loss + self.features * torch.stack(errors).mean() if errors else loss

    def _run(self, anatomy: Anatomy, pixels: Tensor) -> tuple[Tensor, dict[int, State]]:
        """The output, and the states to compare."""
        state, states = anatomy.start(pixels), dict[int, State]()
        if anatomy.merged is not None:
            state = state._replace(places=unmoved(state.x))
        for number in range(len(anatomy.steps)):
            state = anatomy.advance(number, state)
            if number in self.compared:
                states[number] = state
        if anatomy.reads_prefix:  # which tokens that were not computed are not part of
            state = state._replace(places=None)
        return anatomy.finish(state), states

    def _error(self, found: State, wanted: State) -> Tensor:
        """The error of the tokens that there are; one that others have joined should be the mean of
        what these are in the dense model."""
        ours, theirs = found.x.float(), wanted.x.float()
        if found.places is not None:
            theirs = means(theirs, found.places)
        theirs = theirs[:, : ours.shape[1]]
        return (normalised(ours) - normalised(theirs)).square().mean()
