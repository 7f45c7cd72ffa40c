"""A chain of stages: what it is run with, what its stages would leave, and what they left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from vitcompress import gates, output, parallel, targets
from vitcompress.changes import class_names
from vitcompress.console import note
from vitcompress.data.images import survey
from vitcompress.dense import load_dense, say_model
from vitcompress.details import Table
from vitcompress.errors import InputError, RunError, ShortageError, lacks_memory
from vitcompress.export import folder
from vitcompress.export.floats import check_weights
from vitcompress.measure import cost
from vitcompress.memory import in_memory, move_to, on_disk
from vitcompress.model.architecture import VitModel
from vitcompress.pace import Took, took
from vitcompress.recipe import Recipe
from vitcompress.report.format import roughly, seconds
from vitcompress.report.model import Details, Made, Report, StudyReport
from vitcompress.report.plan import Planned
from vitcompress.run_images import RunImages, judging, open_run_images
from vitcompress.stages import effort, needs
from vitcompress.stages.cache import Cache
from vitcompress.stages.context import Context
from vitcompress.stages.links import attention_study
from vitcompress.stages.order import losing_orders
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.registry import StageConfig, stage_of
from vitcompress.stages.stage import StageResult


@dataclass(frozen=True)
class Options:
    """What concerns the running of a recipe and not its result, but for `seed` and `limit`.

    `limit`: at most so many images of each set. `threads`: of onnxruntime when latencies are taken.
    `low_memory`: weights and statistics lie in temporary files. `made`: what the report says of how
    it came about.
    """

    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    limit: int | None = None
    resume: bool = False
    low_memory: bool = False
    made: Made = field(default_factory=Made)


class Carried(NamedTuple):
    """What a stage left, and how many seconds it took."""

    result: StageResult
    seconds: float


def plan(
    recipe: Recipe,
    options: Options | None = None,
    earlier: Report | None = None,
    before: Path | None = None,
) -> tuple[list[Planned], Took]:
    """What each stage would leave, the first being the dense model, and about how long it would
    take; and what the stages took in the run that wrote the folder `before`.

    Nothing is written. With `options`, images are looked for as in a run with them, and what it
    would be refused for is told, as is what it could not be held against in an `earlier` run.
    """
    runtime = targets.load_target(recipe.export.target)
    model = load_dense(recipe)
    gates.applying(recipe.gates, judging(recipe, model).task, earlier)
    if options is not None:
        images = open_run_images(recipe, model, options.limit, options.seed)
        for name, found in images.sets.items():
            labelled = "" if found.labels is None else ", labelled"
            note(f"{name}: {len(found):,} images of {found.source}{labelled}")
    whole, needed = cost.macs(model), needs.memory(model)
    speed = effort.speed(model, whole)
    limit = None if options is None else options.limit
    calibrating = min(recipe.data.images, limit or recipe.data.images)

    def told(name: str, left: StageResult, seconds: float | None) -> Planned:
        stored = folder.stored_bytes(left.model)
        return Planned(name, cost.macs(left.model), stored, needed, details_of(left), seconds)

    stages = [told("dense", StageResult(model, {"timm": model.architecture.timm}), None)]
    reached = model
    for config, (name, left) in zip(recipe.stages, planned(recipe, model, runtime), strict=True):
        work, share = stage_of(config).work(reached, config, calibrating), stages[-1].macs / whole
        seconds = None if speed is None or work is None else speed.seconds(work, share)
        stages.append(told(name, left, seconds))
        reached = left.model
    return stages, took(before, recipe, model.architecture.timm)


def planned(
    recipe: Recipe, dense: VitModel, runtime: targets.Target
) -> Iterator[tuple[str, StageResult]]:
    """By stage, its name, and a model of the shape that it would leave with what is known of it.

    Says where the order of the stages is known to lose. Raises `InputError` for layers that
    `runtime` cannot have, and weights that float16 cannot.
    """
    for line in losing_orders(recipe.stages):
        note(line)
    model = dense
    for config in recipe.stages:
        result = stage_of(config).plan(model, config)
        model = result.model
        yield config.name, result
    runtime.check_layers(model.architecture.quantized)
    if (advice := runtime.advice(model.architecture.quantized)) is not None:
        note(f"export.target: {advice}")
    check_weights(dense, model, recipe.export.floats)


def details_of(result: StageResult, studies: tuple[StudyReport, ...] = ()) -> Details:
    """What `result` tells, with what was measured of its studies."""
    return Details(
        facts=dict(result.facts),
        tables=result.tables,
        galleries=result.galleries,
        studies=studies,
    )


@torch.no_grad()
def sensitivity(recipe: Recipe, options: Options) -> dict[str, Table]:
    """By stage name, what each part of the model as it reaches that stage would cost.

    The chain is carried out as far as its last stage, which is only looked at; nothing is written.
    Raises `InputError` where no stage has anything to tell.
    """
    model, context = _opened(recipe, options)
    tables: dict[str, Table] = {}
    for config in recipe.stages:
        stage = stage_of(config)
        if stage.sensitivity is not None:
            with step(f"{config.name}: sensitivities"):
                tables[config.name] = stage.sensitivity(model, config, context)
        if config is recipe.stages[-1]:
            break
        with step(f"{config.name} ({config.type})"):
            model = carry_out(config, model, context).model
    if not tables:
        raise InputError("stages: none of these stages has sensitivities to show; add one that has")
    return tables


def attention(recipe: Recipe, options: Options) -> dict[str, Table]:
    """By name, what fewer links of attention would cost the model that `recipe` begins with; no
    stage is carried out. Raises `InputError` for a model whose attention is not known."""
    with step("links of attention"):
        return attention_study(*_opened(recipe, options))


def _opened(recipe: Recipe, options: Options) -> tuple[VitModel, Context]:
    """The dense model, and what its stages are run with."""
    torch.manual_seed(options.seed)
    model = load_dense(recipe)
    say_model(model)
    data = open_run_images(recipe, model, options.limit, options.seed)
    return model, context_of(recipe, model, data, options)


def context_of(recipe: Recipe, dense: VitModel, data: RunImages, options: Options) -> Context:
    """What the stages of `recipe` are run with: where any of them recovers, without the images that
    it holds back. The tensors of `dense` go to where those of its stages will lie. Of several
    processes, all must have got the same."""
    room = on_disk if options.low_memory else in_memory
    move_to(dense.module, room)
    context = Context(
        dense=dense,
        calibration=data.calibration,
        preprocess=dense.preprocess,
        seed=options.seed,
        device=_device(options.device),
        cache=Cache(output.cache_folder(), options.resume),
        max_unreadable=recipe.data.max_unreadable,
        evaluation=data.evaluation,
        recovery=data.recovery,
        target=recipe.export.target,
        room=room,
        names=_names(recipe, dense, data),
    )
    if not parallel.alone():
        _check_given(context)
    shares = [config.held_back for config in recipe.stages if isinstance(config, RecoverConfig)]
    if not shares:
        return context
    rest, reserve = context.split(int(max(shares) * len(context.images)))
    return replace(rest, reserve=reserve.images)


def _names(recipe: Recipe, dense: VitModel, data: RunImages) -> Callable[[int], str]:
    """What classes are called."""
    by, listed = judging(recipe, dense), recipe.data.classes
    known = by.class_names if by.outputs > 1 else None  # one output answers yes or no
    return class_names(data.evaluation, known, Path(listed) if listed else None)


def _check_given(context: Context) -> None:
    """Find the images that are unreadable. Raises `InputError` where not all processes have got the
    same model and images."""
    parallel.check_alike()
    parallel.check_same(context.dense.fingerprint(), "model")
    if context.calibration is not None:
        parallel.check_same(context.calibration_fingerprint, "calibration set")
        survey(context.images, context.preprocess, max_unreadable=context.max_unreadable)


def carry_out(config: StageConfig, model: VitModel, context: Context) -> StageResult:
    """What a stage leaves of `model`, its tensors those of the first process: what each computes
    of the same sums may differ in the last bit from one kind of processor to another.

    Raises what the stage does, and `RunError` where the processes have decided differently.
    """
    result = stage_of(config).run(model, config, context)
    described = result.model.architecture.model_dump_json()
    if len(set(parallel.everybody(described))) > 1:
        raise RunError("the processes have chosen differently; let all have processors of one kind")
    parallel.take_over(result.model.module.state_dict().values())
    move_to(result.model.module, context.room)
    return result


def _device(name: str) -> torch.device:
    try:
        device = torch.device(parallel.device_name(name))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: not to be had here; use cpu") from error
    # By default a GPU rounds the inputs of convolutions to 10 bits, which statistics would show.
    torch.backends.cudnn.allow_tf32 = False
    return device


@contextmanager
def step(title: str, left: float | None = None) -> Iterator[float]:
    """Note what is being done, with the seconds `left` of the run where they are known, and how
    long it took. Raises `ShortageError` where the memory does not do for it."""
    note(title + ("" if left is None else f", about {roughly(left)} left"), "bold")
    start = time.monotonic()
    try:
        yield start
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise ShortageError(title) from error
    note(f"  done in {seconds(time.monotonic() - start)}")
