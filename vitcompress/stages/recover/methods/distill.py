"""Training: the model learns to answer as the dense one does, on crops that both get alike.

Knowledge distillation on unlabelled images by a patient and consistent teacher (Beyer et al.,
2106.05237), with the features between blocks as a second signal: few images are enough, as each
gives many crops, and each of these all its tokens.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vitcompress import processor
from vitcompress.details import Fact, Row, Table
from vitcompress.model.anatomy import Anatomy
from vitcompress.model.architecture import VitModel
from vitcompress.model.balance import balance
from vitcompress.model.families import anatomy_of
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.probe import probe_against_dense
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.methods import Method, Recovered
from vitcompress.stages.recover.objective import Objective, compared_steps
from vitcompress.stages.recover.sites import check_sites, sites_that_matter
from vitcompress.stages.recover.trainable import Trainable, finish, trainable
from vitcompress.stages.recover.training import (
    Look,
    SavedTraining,
    check_training,
    nearest,
    train,
)
from vitcompress.stages.recover.views import Originals, Views
from vitcompress.tasks import Task


def recover(model: VitModel, config: RecoverConfig, fit: Context, watched: Context) -> Recovered:
    """The model as it was at its best, on the images that are `watched`, while it was trained; of
    several trainings their average, if it is no farther there than the best of them.

    Raises `InputError` where too many images cannot be read.
    """
    identity = _identity(model, config, fit, watched)
    sites = sites_that_matter(model, fit) if config.parameters == "sites" else []
    if config.parameters == "all":
        balance(model.module)
    student = trainable(model.module, config.parameters, sites, model.architecture.sparse)
    dense = anatomy_of(placed(fit.dense.module, fit.device))
    objective = Objective(
        anatomy_of(model.module),
        dense,
        model.task.distance,
        config.features,
        _compared(model, dense) if config.features else frozenset(),
        _fast_type(fit.device),
    )
    sets = [fit.images] if fit.recovery is None else [fit.images, fit.recovery]
    originals = Originals(sets, fit)
    probe = probe_against_dense(model, watched)
    distance, start = partial(probe.cost_of, model.module), student.copied()

    def trained(run: int) -> Trained:
        views = Views(originals, fit.preprocess, config.crops, fit.seed, run, fit.device)

        def loss(step: int) -> Tensor:
            own = views.batch(step, config.batch)
            return objective.loss(own) * (len(own) / config.batch)

        if config.runs > 1:
            fit.say(f"run {run + 1} of {config.runs}")
        student.fill(start)
        saved = SavedTraining(fit.cache, [*identity, run])
        looks = train(student, config, loss, distance, saved, fit)
        return Trained(looks, student.copied())

    runs = [trained(run) for run in range(config.runs)]
    word, facts = model.task.word, dict[str, Fact](views_of=len(originals))
    if config.runs > 1:
        facts |= {
            f"watched_{word}_{name}": found
            for name, found in averaged(student, runs, distance).items()
        }
    facts |= {
        "trained_parameters": sum(value.numel() for value in student.parameters.values()),
        "features_compared": len(objective.compared),
        "computed_in": str(objective.autocast).removeprefix("torch."),
    }
    if sites:
        facts["sites"] = ", ".join(sites)
    return Recovered(finish(model.module), facts, (_told(runs, model.task),))


class Trained(NamedTuple):
    """What came of a training: its looks, and the parameters at the best of them."""

    looks: list[Look]
    parameters: dict[str, Tensor]

    @property
    def distance(self) -> float:
        """The least; infinite where there is none."""
        found = nearest(self.looks).distance
        return math.inf if math.isnan(found) else found


@torch.no_grad()
def averaged(
    student: Trainable, runs: Sequence[Trained], distance: Callable[[], float]
) -> dict[str, float]:
    """Give `student` the mean of the parameters of all `runs` (in place), in which zeros that all
    have stay (sparse model soups, 2306.16788); those of the best run, if these are nearer. Returns
    the distances of both."""
    best = min(runs, key=lambda run: run.distance)
    names = best.parameters
    student.fill({name: torch.stack([r.parameters[name] for r in runs]).mean(0) for name in names})
    found = {"of_best_run": best.distance, "of_average": distance()}
    if not found["of_average"] <= found["of_best_run"]:
        student.fill(best.parameters)
    return found


def _identity(
    model: VitModel, config: RecoverConfig, fit: Context, watched: Context
) -> list[object]:
    """All that the outcome depends on."""
    more = None if fit.recovery is None else fit.recovery.fingerprint()
    images = [fit.calibration_fingerprint, more, watched.calibration_fingerprint]
    of_models = [model.fingerprint(), fit.dense.fingerprint()]
    of_config = config.model_dump(mode="json", exclude={"runs"})  # of which each is kept alone
    return [*of_models, of_config, images, fit.seed, fit.device.type]


def _compared(model: VitModel, dense: Anatomy) -> frozenset[int]:
    """The steps to compare features behind: none of another width."""
    return compared_steps(dense) if model.architecture.embedding is None else frozenset()


def _fast_type(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it fast, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and processor.multiplies_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def _told(runs: Sequence[Trained], task: Task) -> Table:
    """A row for each look of each run; what is not finite is left out."""

    def row(run: int, look: Look) -> Row:
        found = {"loss": look.loss, task.word: look.distance}
        known = {k: v for k, v in found.items() if math.isfinite(v)}
        return {**({"run": run} if len(runs) > 1 else {}), "step": look.step, **known}

    rows = (row(number, look) for number, each in enumerate(runs, 1) for look in each.looks)
    caption = f"{task.distance_words} to the dense model on the images that are watched, by step"
    return Table.of("training", rows, {task.word: caption})


def _check(model: VitModel, config: RecoverConfig) -> None:
    check_training(config)
    if config.parameters == "sites":
        check_sites(model, f"stages.{config.name}.parameters")


METHOD = Method(recover, check=_check)
