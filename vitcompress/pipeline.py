"""One run: load → baseline → stages → export → measure → gates → report."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcompress import gates, output, pace, parallel, targets, trained_size
from vitcompress.chain import Carried, Options, carry_out, context_of, details_of, planned, step
from vitcompress.changes import changes
from vitcompress.claims import scratch
from vitcompress.console import drawn, keep, keeping, note
from vitcompress.data.images import ImageSet, batches
from vitcompress.dense import load_dense, say_model
from vitcompress.errors import ParityError
from vitcompress.evaluation import Judged, judge, judge_together, torch_runner
from vitcompress.export import folder
from vitcompress.export.floats import in_float16
from vitcompress.export.onnx import export_onnx, facts_of
from vitcompress.export.parity import check_parity
from vitcompress.measure import cost
from vitcompress.measure.runtime import SECONDS, time_in_turns
from vitcompress.measure.runtime import logits as onnx_logits
from vitcompress.model import image_size
from vitcompress.model.architecture import VitModel
from vitcompress.place import writing
from vitcompress.recipe import Recipe
from vitcompress.recipe_gates import Gates
from vitcompress.report import terminal
from vitcompress.report.figures import told
from vitcompress.report.format import label
from vitcompress.report.format import value as fact
from vitcompress.report.model import (
    Artifact,
    Changes,
    Latency,
    Metrics,
    Report,
    StageReport,
    StudyReport,
)
from vitcompress.run_images import RunImages, judging, open_run_images
from vitcompress.stages.context import Context
from vitcompress.stages.order import losing_orders
from vitcompress.stages.stage import StageResult, Study
from vitcompress.tasks import Task
from vitcompress.terms import Floats

_PARITY_IMAGES = 8
_ENOUGH = 50  # images to judge on; gates on fewer say little


@torch.no_grad()
def run(
    recipe: Recipe,
    out: Path,
    options: Options,
    carried: Mapping[str, Carried] | None = None,
    earlier: Report | None = None,
) -> Report:
    """Carry out `recipe` and write the folder `out`, which appears only when all is done.

    `carried`: stages, by name, that were carried out already. `earlier`: a run of the same task
    that `gates.against` holds this one against.
    Of several processes, the first writes it, and all return its report.
    Raises `InputError`, `RunError` and `ParityError`; once the work has begun, with a note that
    says where its log is left. A failed gate is no error: see `Report.passed`.
    """
    runtime = targets.load_target(recipe.export.target)
    place: AbstractContextManager[Path] = nullcontext(out)
    if parallel.is_first():
        place = writing(out)
    with (
        place as target,
        scratch() as home,
        keeping(target / output.LOG if parallel.is_first() else None) as log,
    ):
        torch.manual_seed(options.seed)
        note(_told_of(options, runtime), detail=True)
        dense = load_dense(recipe)
        say_model(dense)
        task = judging(recipe, dense).task
        limits = gates.applying(recipe.gates, task, earlier)
        data = open_run_images(recipe, dense, options.limit, options.seed)
        for _ in planned(recipe, dense, runtime):
            pass  # what is wrong with a late stage is told before the first takes its time
        context = context_of(recipe, dense, data, options)
        if not parallel.is_first():
            return _follow(recipe, dense, data, context)
        known = pace.took(earlier or out, recipe, dense.architecture.timm).seconds
        run = _Run(
            recipe, options, dense, data, context, target, home, runtime, task, carried or {}, known
        )
        with output.leaving_log(target, out):
            done = run.carry_out()
            report = _held_against(done, limits, earlier)
            output.write_reports(target, report)
            keep(drawn(terminal.summary(report)))
            log.close()  # before its hash is taken
            against = {} if earlier is None else {"against": earlier.sha256()}
            output.write_manifest(target, recipe, options, data.fingerprints() | against)
    return parallel.from_first(lambda: report)


def _told_of(options: Options, runtime: targets.Target) -> str:
    """What a run rests on, on one line."""
    known = ", ".join(f"{name} {version}" for name, version in output.versions().items())
    given = f"seed {options.seed}, device {options.device}, {options.threads} thread(s)"
    return f"{known}; {runtime.name} {runtime.version}; {given}"


def _held_against(done: Report, limits: Gates, earlier: Report | None) -> Report:
    """What was `done`, with its gates."""
    results = gates.gate_results(limits, done.baseline, done.final, earlier)
    told = [] if earlier is None else gates.unlike(earlier, done.baseline)
    return done.model_copy(update={"gates": results, "warnings": [*done.warnings, *told]})


def _follow(recipe: Recipe, dense: VitModel, data: RunImages, context: Context) -> Report:
    """The stages and the figures between them, in a process that is not the first, which does all
    else and reports."""
    model = dense
    for config in recipe.stages:
        model = carry_out(config, model, context).model
        if config is not recipe.stages[-1]:
            _judged_together(model, recipe, data, context)
    return parallel.from_first()


def _judged_together(model: VitModel, recipe: Recipe, data: RunImages, context: Context) -> Judged:
    """The outputs of the torch `model` for the evaluation images."""
    unreadable = recipe.data.max_unreadable
    return judge_together(model, data.evaluation, context.device, unreadable)


@dataclass
class _Run:
    """The state of one run, so that its steps need not pass everything along."""

    recipe: Recipe
    options: Options
    dense: VitModel
    data: RunImages
    context: Context
    target: Path
    scratch: Path
    runtime: targets.Target
    task: Task  # that figures are of
    carried: Mapping[str, Carried]
    known: Mapping[str, float]  # seconds by stage, of an earlier run

    def carry_out(self) -> Report:
        baseline_file = self.scratch / "baseline.onnx"
        with step("baseline: fp32 export, checked and measured") as started:
            self.parity_pixels = self._parity_pixels()
            self._export(self.dense, baseline_file, {})
            self.judged_dense = self._judge_onnx(baseline_file)
        paced = pace.Pace(time.monotonic() - started + 2 * SECONDS, self.known)
        resizing, told_of_it = self._resizing()
        model, stages, warnings = self.dense, list[StageReport](), list[str]()
        names = [config.name for config in self.recipe.stages]
        for number, config in enumerate(self.recipe.stages, 1):
            title = f"stage {number}/{len(names)}: {config.name} ({config.type})"
            with step(title, paced.left(names[number - 1 :])) as started:
                if (known := self.carried.get(config.name)) is not None:
                    result, seconds = known
                else:
                    result = carry_out(config, model, self.context)
                    seconds = time.monotonic() - started
                model = result.model
                studies = tuple(map(self._studied, result.studies))
                warnings += result.warnings
                warnings += [f"{config.name}: {s.note}; {told(s.figures)}" for s in studies]
                is_last = config is self.recipe.stages[-1]
                metrics = None if is_last else self._torch_metrics(model)
                paced.taken[config.name] = seconds
                self._note_details(result, metrics)
            stages.append(
                StageReport(
                    name=config.name,
                    type=config.type,
                    seconds=round(seconds, 2),
                    metrics=metrics,
                    details=details_of(result, studies),
                )
            )
        with step("export, parity and measurement", paced.left([])):
            artifacts, final, baseline, changed = self._finish(model, baseline_file)
        if stages:
            stages[-1] = stages[-1].model_copy(update={"metrics": final})
        return Report(
            model={**_model_facts(self.recipe, self.dense, model), **resizing},
            baseline=baseline,
            stages=stages,
            final=final,
            artifacts=artifacts,
            environment=output.environment(self.options.threads, self.runtime),
            warnings=[
                *self.data.warnings(),
                *filter(None, [self.runtime.advice(model.architecture.quantized)]),
                *losing_orders(self.recipe.stages),
                *_few(len(self.judged_dense.outputs)),
                *told_of_it,
                *warnings,
            ],
            changes=changed,
            made=self.options.made.model_copy(update={"date": output.now()}),
        )

    def _note_details(self, result: StageResult, metrics: Metrics | None) -> None:
        """What a stage tells, and the figures of what it left."""
        for key, value in result.facts.items():
            note(f"  {label(key)}: {fact(value, key)}", detail=True)
        if metrics is not None:
            note(f"  {told(metrics)}", detail=True)

    def _resizing(self) -> tuple[dict[str, Any], list[str]]:
        """What images of another size than in training cost and save: facts, and a line.

        Nothing for images of that size.
        """
        if (size := self.dense.trained_size) is None:
            return {}, []
        with step(f"the model at {image_size.told(size)} pixels, as trained"):
            trained = load_dense(trained_size.recipe_of(self.recipe, size))
            images = trained_size.sample(self.data.evaluation)
            judged, resized = (self._judge_torch(each, images) for each in (trained, self.dense))
            facts, line = trained_size.compared(trained, judged, self.dense, resized, self.task)
        note(f"  {line}")
        return {"trained_size": facts}, [line]

    def _finish(
        self, model: VitModel, baseline_file: Path
    ) -> tuple[list[Artifact], Metrics, Metrics, Changes]:
        """Write and check the artifacts; the figures of the exported file and of the baseline, and
        what has changed between them."""
        export = self.recipe.export
        model = in_float16(model, export.floats)
        home = self.target if export.onnx else self.scratch
        file = home / output.ONNX
        facts = facts_of(model, output.provenance(self.recipe, self.dense))
        parity = self._export(model, file, facts, export.floats)
        artifacts = []
        if export.onnx:
            scripts = output.write_predict(self.target, self.dense.architecture.timm, facts)
            artifacts += [output.artifact(file, parity)]
            artifacts += [output.artifact(script, {}) for script in scripts]
            artifacts += [output.artifact(f, {}) for f in self.target.glob("*.onnx.data")]
        if export.safetensors:
            folder.save_folder(model, self.target)
            reloaded = _check_reload(self.target, model, self.parity_pixels)
            artifacts += [
                output.artifact(self.target / folder.SAFETENSORS, reloaded),
                output.artifact(self.target / folder.CONFIG, {}),
            ]
        judged = self._judge_onnx(file)
        timed = time_in_turns(
            {
                "baseline": self.runtime.session(baseline_file, self.options.threads),
                "final": self.runtime.session(file, self.options.threads),
            },
            self.parity_pixels[:1].numpy(),
        )

        def metrics(of: VitModel, path: Path, figures: Judged, name: str) -> Metrics:
            timing = timed[name]
            measured = {
                "params": cost.parameters(of.module),
                "macs": cost.macs(of),
                "bytes": output.onnx_bytes(path),
                "latency_ms": Latency(
                    p50=timing.p50, p90=timing.percentile(90), p99=timing.percentile(99)
                ),
                "speedup": timed["baseline"].p50 / timing.p50,
            }
            return self._figures(figures).model_copy(update=measured)

        final = metrics(model, file, judged, "final")
        baseline = metrics(self.dense, baseline_file, self.judged_dense, "baseline")
        return artifacts, final, baseline, self._changes(judged)

    def _changes(self, judged: Judged) -> Changes:
        """How these outputs of the final model differ from the dense ones."""
        images, look = self.data.evaluation, self.dense.preprocess
        return changes(self.task, self.judged_dense, judged, images, look, self.context.names)

    def _export(
        self, model: VitModel, file: Path, facts: dict[str, str], floats: Floats = "float32"
    ) -> dict[str, Any]:
        """Write `file`, and check it; what is to be told of it, what each pass changed included."""
        target = self.recipe.export.target
        passes = export_onnx(model, file, facts, target, floats)
        parity = check_parity(file, model, self.parity_pixels, 0, target, floats)
        return {**parity, "passes": passes}

    def _judge_onnx(self, path: Path) -> Judged:
        held = self.runtime.session(path, 0)
        return self._judge(lambda pixels: next(onnx_logits(held, [pixels])))

    def _torch_metrics(self, model: VitModel) -> Metrics:
        """Figures between stages, from the torch model; the ONNX file is measured at the end."""
        judged = _judged_together(model, self.recipe, self.data, self.context)
        measured = {"params": cost.parameters(model.module), "macs": cost.macs(model)}
        return self._figures(judged).model_copy(update=measured)

    def _figures(self, judged: Judged) -> Metrics:
        return judged.figures(self.task, self.judged_dense)

    def _studied(self, study: Study) -> StudyReport:
        runner = torch_runner(replace(self.dense, module=study.module), torch.device("cpu"))
        figures = self._figures(self._judge(runner))
        return StudyReport(
            name=study.name, note=study.note, facts=dict(study.facts), figures=figures
        )

    def _judge(self, runner: Any) -> Judged:
        unreadable = self.recipe.data.max_unreadable
        images, spec = self.data.evaluation, self.dense.preprocess
        return judge(runner, images, spec, unreadable, "evaluating")

    def _judge_torch(self, model: VitModel, images: ImageSet) -> Judged:
        """The outputs of `model` for `images` as it takes them."""
        runner, unreadable = (
            torch_runner(model, self.context.device),
            self.recipe.data.max_unreadable,
        )
        return judge(runner, images, model.preprocess, unreadable, "evaluating")

    def _parity_pixels(self) -> Tensor:
        unreadable = self.recipe.data.max_unreadable
        images, spec = self.data.evaluation, self.dense.preprocess
        return next(batches(images, spec, _PARITY_IMAGES, max_unreadable=unreadable)).pixels


def _few(images: int) -> list[str]:
    """What to say of figures that rest on so many images."""
    if images >= _ENOUGH:
        return []
    share = 100 / images
    return [f"all figures rest on {images} images only, so one image is {share:.3g} points"]


def _check_reload(home: Path, model: VitModel, pixels: Tensor) -> dict[str, Any]:
    """Read the safetensors again and compare logits, which must be the same to the last bit."""
    again = folder.load_folder(home).module(pixels)
    if not torch.equal(again, model.module(pixels)):
        raise ParityError(f"{folder.SAFETENSORS}: the model read again gives other logits")
    return {"passed": True, "images": len(pixels), "reloaded": "same logits"}


def _model_facts(recipe: Recipe, dense: VitModel, model: VitModel) -> dict[str, Any]:
    return {
        "name": dense.architecture.timm,
        "checkpoint": Path(recipe.model.checkpoint or "").name,
        "task": dense.task.name,
        "classes": dense.num_classes,
        "preprocessing": dense.preprocess.model_dump(mode="json"),
        "stages": [config.name for config in recipe.stages],
    }
