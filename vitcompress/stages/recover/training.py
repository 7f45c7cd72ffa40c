"""The loop of a training: steps, looks at how far it is, and a state to go on from."""

import difflib
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from vitcompress import parallel
from vitcompress.errors import InputError
from vitcompress.stages.cache import Cache, ResultKind
from vitcompress.stages.context import Context
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.trainable import Trainable

_LOOKS = 10  # over all steps
_ASTRAY = 2.0  # times as far from the dense model as at the start
_PATIENCE = 3  # looks at that, after which the training ends
_WARM_UP = 0.1  # of all steps
_LARGEST_GRADIENT = 1.0  # its norm
_MEMORY = 0.1  # of all steps: how far back the mean of the parameters reaches
_SAVED_EVERY = 40.0  # seconds
_UNFIT = ["bnb*", "fused*", "kron*"]  # of other packages; with a state that only pickle can write


@dataclass(frozen=True)
class Look:
    """After so many steps: the mean `loss` since the look before, and the mean `distance` from the
    dense model on the images that are watched."""

    step: int
    loss: float
    distance: float


@dataclass(frozen=True)
class SavedTraining:
    """Where the state of a training is kept; what it depends on is its `identity`."""

    cache: Cache
    identity: object

    def load(self) -> dict[str, Any] | None:
        return self.cache.get(_TRAINING, self.identity)

    def save(self, state: dict[str, Any]) -> None:
        self.cache.put(_TRAINING, self.identity, state)


_TRAINING = ResultKind[dict[str, Any]](
    "training", 3, torch.save, lambda data: torch.load(io.BytesIO(data), weights_only=True)
)


def train(
    student: Trainable,
    config: RecoverConfig,
    loss: Callable[[int], Tensor],
    distance: Callable[[], float],
    saved: SavedTraining,
    context: Context,
) -> list[Look]:
    """Train `student`, which is left as it was at the best of all looks (in place).

    What is looked at is the mean of the parameters over the last steps, from which much of the
    noise of small batches is gone (Polyak and Juditsky, 1992). `loss`: of the number of a step; of
    several processes, the share of this one. `distance`: of the student as it is, on images to be
    watched. What was saved of the same training goes on, to the same end.
    """
    memory = max(1.0, _MEMORY * config.steps)
    with torch.no_grad():
        start = distance()
    run = _Run(student, optimizer_of(student, config), memory, start)
    if (state := saved.load()) is not None:
        run.restore(state)
    last_saved, every = time.monotonic(), max(1, config.steps // _LOOKS)
    left = range(run.step, config.steps)
    with torch.enable_grad():
        for step in context.track(left, "training", len(left)):
            if run.over:
                break
            run.advance(loss, rate_at(step, config))
            if run.step % every == 0 or run.step == config.steps:
                with torch.no_grad():
                    run.look(distance)
            if time.monotonic() - last_saved > _SAVED_EVERY:
                saved.save(run.state())
                last_saved = time.monotonic()
    saved.save(run.state(finished=True))
    student.fill(run.best)
    return run.looks


def rate_at(step: int, config: RecoverConfig) -> float:
    """The learning rate of the step of this number: a rise along a line, a fall along a cosine."""
    warm = max(1, round(_WARM_UP * config.steps))
    if step < warm:
        return config.rate * (step + 1) / warm
    return config.rate * (1 + math.cos(math.pi * (step - warm) / (config.steps - warm))) / 2


def optimizer_of(student: Trainable, config: RecoverConfig) -> Optimizer:
    """What takes the steps, without weight decay: it would draw the model away from where it is."""
    groups = [{"params": list(student.parameters.values())}]
    made: Optimizer = create_optimizer_v2(
        groups, opt=config.optimizer, lr=config.rate, weight_decay=0.0
    )
    return made


def check_training(config: RecoverConfig) -> None:
    """Raise `InputError` for an optimizer that is not known, or needs more than gradients, and for
    a batch that does not go round."""
    if config.batch < parallel.world():
        raise InputError(
            f"stages.{config.name}.batch: {config.batch} crops are too few for {parallel.world()} "
            "processes; give one or more for each"
        )
    known = [name for name in list_optimizers(exclude_filters=_UNFIT) if _fits(name)]
    if config.optimizer not in known:
        near = difflib.get_close_matches(config.optimizer, known, 3) or ["adamw", "lion", "sgd"]
        raise InputError(
            f"stages.{config.name}.optimizer: {config.optimizer!r} is none that timm has for this; "
            f"give {', '.join(near)} or another of timm.optim.list_optimizers()"
        )


def nearest(looks: Sequence[Look]) -> Look:
    """The one of the least distance, the first of equal ones; NaN is the greatest."""
    return min(looks, key=lambda look: math.inf if math.isnan(look.distance) else look.distance)


def _fits(name: str) -> bool:
    return not get_optimizer_info(name).second_order


class _Run:
    """A training on its way: how far it is, the mean of its parameters, of which the past counts
    for `memory` steps, and the best so far, at first what was given, at the distance `start`."""

    def __init__(
        self, student: Trainable, optimizer: Optimizer, memory: float, start: float
    ) -> None:
        self.student, self.optimizer, self.best = student, optimizer, student.copied()
        self.mean, self.memory, self.start = student.copied(), memory, start
        self.step, self.losses, self.looks = 0, list[float](), list[Look]()
        self.over = False

    def advance(self, loss: Callable[[int], Tensor], rate: float) -> None:
        """One step at this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        found = loss(self.step)
        found.backward()
        total, parameters = found.detach(), self.student.parameters.values()
        parallel.add_in_place([total, *(p.grad for p in parameters if p.grad is not None)])
        clip_grad_norm_(list(self.student.parameters.values()), _LARGEST_GRADIENT)
        self.optimizer.step()
        self.student.keep_zeros()
        self.step += 1
        with torch.no_grad():
            for name, value in self.student.parameters.items():
                self.mean[name].lerp_(value, 1 / min(self.step, self.memory))
        self.losses.append(float(total))

    def look(self, distance: Callable[[], float]) -> None:
        """Keep the mean where it is nearer than ever; over where it has gone astray, or is broken.

        That it comes no nearer for a while says little as long as the rate is high.
        """
        now = self.student.copied()
        self.student.fill(self.mean)
        found = distance()
        self.looks.append(Look(self.step, sum(self.losses) / len(self.losses), found))
        self.losses = []
        best = nearest(self.looks)
        if best is self.looks[-1]:
            self.best = self.student.copied()
        self.student.fill(now)
        recent = [look.distance > _ASTRAY * self.start for look in self.looks[-_PATIENCE:]]
        self.over = (len(recent) == _PATIENCE and all(recent)) or not math.isfinite(found)

    def state(self, finished: bool = False) -> dict[str, Any]:
        """All that `restore` needs, of what tensors, numbers and their collections are."""
        looks = [(look.step, look.loss, look.distance) for look in self.looks]
        found = {"step": self.step, "best": self.best, "looks": looks, "over": self.over}
        if finished:
            return {**found, "over": True}
        return {
            **found,
            "losses": self.losses,
            "now": self.student.copied(),
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.best, self.over = state["step"], state["best"], state["over"]
        self.looks = [Look(*look) for look in state["looks"]]
        if not self.over:
            self.losses, self.mean = state["losses"], state["mean"]
            self.student.fill(state["now"])
            self.optimizer.load_state_dict(state["optimizer"])
