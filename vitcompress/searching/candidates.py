"""Candidates built and measured: what they cost, and what they lose on images no stage has seen."""

import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from vitcompress import output, targets
from vitcompress.chain import Carried, Options, context_of
from vitcompress.console import note
from vitcompress.dense import load_dense, say_model
from vitcompress.errors import InputError
from vitcompress.export.floats import in_float16
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.measure import cost
from vitcompress.measure.runtime import time_in_turns
from vitcompress.model.architecture import VitModel
from vitcompress.model.structure import placed
from vitcompress.run_images import open_run_images
from vitcompress.searching.config import Cost
from vitcompress.searching.goal import Limit, limits_of, losses_of
from vitcompress.searching.predict import Measured
from vitcompress.searching.space import Combination, Space
from vitcompress.stages.context import Context, Shared
from vitcompress.stages.registry import StageConfig, stage_of

_KEPT = 6  # results of stages at the starts of chains, in memory
_SECONDS = 2.0  # that each of two files is timed
_LEAST = 8  # images to judge on
_COMPARED = 4  # that the file of a candidate and its torch model are compared on


@dataclass(frozen=True)
class Candidate:
    """A chain that was carried out. `chain`: its stages, budgets of the dense model; `carried`: by
    name, what they left. `costs`: all of them, as shares of the dense model's."""

    measured: Measured
    chain: tuple[StageConfig, ...]
    carried: dict[str, Carried]
    costs: dict[Cost, float]
    distance: float


@dataclass
class Workbench:
    """What candidates are built with and measured by.

    `fit`: with the images that stages see. `held`: the others. `threads`: that latencies are taken
    on. `scratch`: a folder for files that nobody keeps.
    """

    space: Space
    limits: list[Limit]
    dense: VitModel
    fit: Context
    held: Context
    threads: int
    scratch: Path
    kept: OrderedDict[str, tuple[StageConfig, Carried]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        pixels = self.held.calibration_batches("images to judge candidates on")
        self.pixels = [each.to(self.held.device) for each in pixels]
        self.answers = self._outputs(self.dense)
        self.dense_macs, target = cost.macs(self.dense), self.space.recipe.export.target
        export_onnx(self.dense, self.dense_file, {}, target)
        self.session = targets.load_target(target).session(self.dense_file, self.threads)

    def built(self, combination: Combination) -> Candidate:
        """The candidate of a combination.

        Raises what its stages and its export raise, and `RunError` for losses that mean nothing.
        """
        model, carried = self.dense, dict[str, Carried]()
        chain, before = list[StageConfig](), ""
        for config in self.space.chain(combination):
            before += f"{config.type} {config.model_dump_json()}\n"
            resolved, done = self._carried(before, model, config)
            chain.append(resolved)
            carried[config.name], model = done, done.result.model
        outputs = self._outputs(model)
        losses = losses_of(self.limits, outputs, self.answers)
        costs = self._costs(model)
        minimized = costs[self.space.recipe.search.minimize]
        distance = float(model.task.distance(outputs, self.answers).mean())
        return Candidate(
            Measured(combination, minimized, losses), tuple(chain), carried, costs, distance
        )

    def _carried(
        self, key: str, model: VitModel, config: StageConfig
    ) -> tuple[StageConfig, Carried]:
        """A stage with its budget as a share of the dense model, and what it leaves."""
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        resolved = self._resolved(model, config)
        note(f"{config.name} ({config.type})", style="bold")
        start = time.monotonic()
        torch.manual_seed(self.fit.seed)
        result = stage_of(resolved).run(model, resolved, self.fit)
        found = resolved, Carried(result, time.monotonic() - start)
        self.kept[key] = found
        while len(self.kept) > _KEPT:
            self.kept.popitem(last=False)
        return found

    def _resolved(self, model: VitModel, config: StageConfig) -> StageConfig:
        budget = getattr(config, "budget", None)
        share = getattr(budget, "macs", None)
        if budget is None or share is None:
            return config
        share *= cost.macs(model) / self.dense_macs
        told = budget.model_copy(update={"macs": round(share, 4)})
        return config.model_copy(update={"budget": told})

    @torch.no_grad()
    def _outputs(self, model: VitModel) -> Tensor:
        module = placed(model.module, self.held.device)
        return torch.cat([module(each).float().cpu() for each in self.pixels])

    def _costs(self, model: VitModel) -> dict[Cost, float]:
        """Latencies are taken in turns with the dense model. Raises `ParityError` for a file that
        does not give what torch gives."""
        export, file = self.space.recipe.export, self.scratch / "candidate.onnx"
        model = in_float16(model, export.floats)
        export_onnx(model, file, {}, export.target, export.floats)
        some = self.pixels[0][:_COMPARED].cpu()
        check_parity(file, model, some, self.threads, export.target, export.floats)
        held = targets.load_target(export.target).session(file, self.threads)
        taken = time_in_turns(
            {"dense": self.session, "it": held}, some[:1].numpy(), seconds=_SECONDS
        )
        return {
            "latency": taken["it"].p50 / taken["dense"].p50,
            "bytes": output.onnx_bytes(file) / output.onnx_bytes(self.dense_file),
            "macs": cost.macs(model) / self.dense_macs,
        }

    @property
    def dense_file(self) -> Path:
        return self.scratch / "dense.onnx"


def workbench(space: Space, options: Options, scratch: Path) -> Workbench:
    """With the model and the images that the recipe of `space` names, opened as a run opens them.

    Raises `InputError` as a run does, for gates that cannot be judged without labels, and for too
    few calibration images.
    """
    recipe = space.recipe
    dense = load_dense(recipe)
    say_model(dense)
    limits = limits_of(recipe.gates, dense.task)
    images = open_run_images(recipe, dense, options.limit, options.seed)
    context = replace(context_of(recipe, dense, images, options), shared=Shared())
    held = min(recipe.search.images, len(context.images) // 2)
    if held < _LEAST:
        raise InputError(
            f"data.calibration: {len(context.images)} images are too few to compress with some and "
            f"to judge on others; give at least {2 * _LEAST}"
        )
    return Workbench(space, limits, dense, *context.split(held), options.threads, scratch)
