"""Training: the model learns to answer as the dense one does, on crops that both get alike.

Knowledge distillation on unlabelled images by a patient and consistent teacher (Beyer et al.,
2106.05237), with the features between blocks as a second signal: few images are enough, as each
gives many crops, and each of these all its tokens.
"""

import math
from functools import partial

import torch
from torch import Tensor

from vitcompress import processor
from vitcompress.details import Fact, Row, Table
from vitcompress.model.anatomy import Anatomy
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.probe import probe_against_dense
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.methods import Method, Recovered
from vitcompress.stages.recover.objective import Objective, compared_steps
from vitcompress.stages.recover.sites import check_sites, sites_that_matter
from vitcompress.stages.recover.trainable import finish, trainable
from vitcompress.stages.recover.training import Look, SavedTraining, check_optimizer, train
from vitcompress.stages.recover.views import Originals, Views


def recover(model: VitModel, config: RecoverConfig, fit: Context, watched: Context) -> Recovered:
    """The model as it was at its best, on the images that are `watched`, while it was trained.

    Raises `InputError` where too many images cannot be read.
    """
    saved = SavedTraining(fit.cache, _identity(model, config, fit, watched))
    sites = sites_that_matter(model, fit) if config.parameters == "sites" else []
    student = trainable(model.module, config.parameters, sites)
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
    views = Views(Originals(sets, fit), fit.preprocess, config.crops, fit.seed)

    probe = probe_against_dense(model, watched)

    def loss(step: int) -> Tensor:
        return objective.loss(views.batch(step, config.batch).to(fit.device))

    looks = train(student, config, loss, partial(probe.cost_of, model.module), saved, fit)
    facts: dict[str, Fact] = {
        "views_of": len(views.originals),
        "trained_parameters": sum(value.numel() for value in student.parameters.values()),
        "features_compared": len(objective.compared),
        "computed_in": str(objective.autocast).removeprefix("torch."),
    }
    if sites:
        facts["sites"] = ", ".join(sites)
    return Recovered(finish(model.module), facts, (_told(looks, model.task.word),))


def _identity(
    model: VitModel, config: RecoverConfig, fit: Context, watched: Context
) -> list[object]:
    """All that the outcome depends on."""
    more = None if fit.recovery is None else fit.recovery.fingerprint()
    images = [fit.calibration_fingerprint, more, watched.calibration_fingerprint]
    of_models = [model.fingerprint(), fit.dense.fingerprint()]
    return [*of_models, config.model_dump(mode="json"), images, fit.seed, fit.device.type]


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


def _told(looks: list[Look], word: str) -> Table:
    """A row for each look; what is not finite is left out."""

    def row(look: Look) -> Row:
        found = {"loss": look.loss, word: look.distance}
        return {"step": look.step, **{k: v for k, v in found.items() if math.isfinite(v)}}

    return Table.of("training", map(row, looks))


def _check(model: VitModel, config: RecoverConfig) -> None:
    check_optimizer(config)
    if config.parameters == "sites":
        check_sites(model, f"stages.{config.name}.parameters")


METHOD = Method(recover, check=_check)
