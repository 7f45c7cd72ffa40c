"""The command line: parse, call, print. torch is imported only by the command that needs it."""

import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from vitcompress.cli_options import (
    AsJson,
    Calibration,
    Classes,
    Device,
    Evaluation,
    Limit,
    ModelArgument,
    Name,
    Quiet,
    RecipeArgument,
    Resume,
    Seed,
    Settings,
    Threads,
)

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    help="Compress trained Vision Transformers: checkpoint in, verified ONNX out.",
    epilog="Exit codes: 0 ok · 1 a gate failed · 2 input error · 3 run-time failure · "
    "4 parity failure · 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a command raises into one line on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from vitcompress.console import console
        from vitcompress.errors import VitcompressError

        console.quiet = bool(kwargs.get("quiet"))

        def end(message: str, code: int) -> NoReturn:
            console.quiet = False
            console.print(message, style="bold red", markup=False, soft_wrap=True)
            raise typer.Exit(code)

        try:
            return command(*args, **kwargs)
        except VitcompressError as error:
            end(f"error: {error}", error.exit_code)
        except KeyboardInterrupt:
            end("interrupted: nothing was written", 130)
        except typer.Exit:
            raise
        except Exception as error:
            if os.environ.get("VITCOMPRESS_DEBUG"):
                traceback.print_exc()
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            end(f"failed: {reason} (VITCOMPRESS_DEBUG=1 shows where)", 3)

    return wrapped


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def _resolved(
    recipe: str,
    model: str | None,
    name: str | None,
    calibration: str | None,
    evaluation: str | None,
    classes: Path | None,
    settings: list[str] | None,
) -> Any:
    """The recipe with what the command line overrides."""
    from vitcompress.recipe import find_recipe, load_recipe

    given = {
        "model.checkpoint": model,
        "model.name": name,
        "data.calibration": calibration,
        "data.evaluation": evaluation,
        "data.classes": None if classes is None else str(classes),
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    return load_recipe(find_recipe(recipe), [*(settings or []), *overrides])


@app.command()
@reported
def run(
    recipe: RecipeArgument,
    model: ModelArgument = None,
    name: Name = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    classes: Classes = None,
    out: Annotated[Path | None, typer.Option(help="The output folder.")] = None,
    settings: Settings = None,
    limit: Limit = None,
    threads: Threads = 1,
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Resume = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a RECIPE on a MODEL; write weights, ONNX and a report; exit 1 when a gate fails."""
    from vitcompress import pipeline
    from vitcompress.console import console
    from vitcompress.report import terminal

    resolved = _resolved(recipe, model, name, calibration, evaluation, classes, settings)
    target = out or Path("out") / f"{_stem(resolved.model.checkpoint)}-{Path(recipe).stem}"
    options = pipeline.Options(seed, device, threads, limit, resume)
    report = pipeline.run(resolved, target, options)
    console.print(terminal.summary(report))
    console.print(f"written to [bold]{target}[/bold]: open {target / 'report.html'}")
    if as_json:
        _print_json(json.loads(report.to_json()))
    if not report.passed:
        raise typer.Exit(1)


def _stem(checkpoint: str | None) -> str:
    """A file name for the model: `timm:vit_tiny` → vit_tiny, `a/b.safetensors` → b."""
    return Path((checkpoint or "model").rpartition(":")[2]).stem


@app.command()
@reported
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, or timm:NAME.")],
    name: Name = None,
    evaluation: Evaluation = None,
    calibration: Calibration = None,
    classes: Classes = None,
    out: Annotated[Path | None, typer.Option(help="The output folder.")] = None,
    limit: Limit = None,
    threads: Threads = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Export a MODEL as it is to ONNX, checked against torch on images: a run without stages."""
    from vitcompress import pipeline
    from vitcompress.console import console
    from vitcompress.recipe import Recipe
    from vitcompress.report import terminal

    recipe = Recipe.model_validate(
        {
            "stages": [],
            "model": {"checkpoint": model, "name": name},
            "data": {
                "calibration": calibration,
                "evaluation": evaluation,
                "classes": None if classes is None else str(classes),
            },
        }
    )
    target = out or Path("out") / f"{_stem(model)}-fp32"
    report = pipeline.run(recipe, target, pipeline.Options(threads=threads, limit=limit))
    console.print(terminal.summary(report))
    console.print(f"written to [bold]{target}[/bold]")
    if as_json:
        _print_json(json.loads(report.to_json()))


@app.command()
@reported
def plan(
    recipe: RecipeArgument,
    model: ModelArgument = None,
    name: Name = None,
    settings: Settings = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what a RECIPE would do to a MODEL: layers, MACs, bytes. Writes nothing."""
    from rich.table import Table

    from vitcompress import pipeline
    from vitcompress.console import console
    from vitcompress.report.format import size

    stages = pipeline.plan(_resolved(recipe, model, name, None, None, None, settings))
    if as_json:
        return _print_json(
            [vars(planned) | {"details": planned.details.model_dump()} for planned in stages]
        )
    table, names = Table("after stage", "MACs", "tensors", "what"), list[str]()
    for planned in stages:
        what = ", ".join(f"{key} {value}" for key, value in planned.details.facts.items())
        table.add_row(planned.stage, f"{planned.macs / 1e9:.3f} G", size(planned.bytes), what)
        for layers in (each for each in planned.details.tables if each.name == "layers"):
            names.append(
                f"[bold]{planned.stage}[/bold]: {', '.join(str(r['layer']) for r in layers.rows)}"
            )
    console.print(table)
    for line in names:
        console.print(line)


@app.command()
@reported
def sensitivity(
    recipe: RecipeArgument,
    model: ModelArgument = None,
    name: Name = None,
    calibration: Calibration = None,
    score: Annotated[
        str | None,
        typer.Option(help="What layers count for their bits: lrp, fisher, kl, uniform or random."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A file for the tables: .json, or .html with pictures.")
    ] = None,
    settings: Settings = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Resume = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what each part of a MODEL would cost if the stages of a RECIPE compressed it."""
    from vitcompress import pipeline
    from vitcompress.console import console
    from vitcompress.errors import InputError
    from vitcompress.report import html, terminal

    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out is not None and out.suffix not in (".json", ".html"):
        raise InputError(f"--out {out}: name it .json, or .html for pictures")
    resolved = _resolved(recipe, model, name, calibration, None, None, settings)
    if score is not None:
        scored = [s.name for s in resolved.stages if s.type == "quantize"]
        if not scored:
            raise InputError("--score: the recipe has no quantize stage; leave the option out")
        settings = [*(settings or []), *(f"stages.{n}.score={json.dumps(score)}" for n in scored)]
        resolved = _resolved(recipe, model, name, calibration, None, None, settings)
    options = pipeline.Options(seed=seed, device=device, limit=limit, resume=resume)
    tables = pipeline.sensitivity(resolved, options)
    for stage, found in tables.items():
        console.print(terminal.table(stage, found), crop=False)
    rows = {stage: found.rows for stage, found in tables.items()}
    if out is not None:
        page = out.suffix == ".html"
        title = _stem(resolved.model.checkpoint)
        text = html.sensitivities(title, tables) if page else json.dumps(rows, indent=2) + "\n"
        out.write_text(text, encoding="utf-8")
        console.print(f"written to [bold]{out}[/bold]")
    if as_json:
        _print_json(rows)


@app.command()
@reported
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Checkpoint, output folder or ONNX.")],
    name: Name = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what a checkpoint, an output folder or an ONNX file holds."""
    from vitcompress import inspection

    facts = inspection.facts(path, name)
    _print_json(facts) if as_json else _print_facts(facts)


@app.command("eval")
@reported
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An ONNX file, an output folder or a checkpoint.")
    ],
    evaluation: Annotated[
        str,
        typer.Option(
            help="Labelled images: class folders, .tar or .npz.", envvar="VITCOMPRESS_EVALUATION"
        ),
    ],
    name: Name = None,
    classes: Classes = None,
    limit: Limit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the accuracy of a MODEL on labelled images."""
    from vitcompress import inspection

    facts = inspection.evaluate(model, name, evaluation, classes, limit)
    _print_json(facts) if as_json else _print_facts(facts)


@app.command()
@reported
def bench(
    first: Annotated[str, typer.Argument(metavar="A", help="An ONNX file or an output folder.")],
    second: Annotated[str | None, typer.Argument(metavar="[B]", help="A second one.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="Time for each model.")] = 5.0,
    threads: Threads = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time one ONNX file, or two in turns, in onnxruntime."""
    from vitcompress import inspection

    facts = inspection.bench([first, *([second] if second else [])], batch, seconds, threads)
    _print_json(facts) if as_json else _print_facts(facts)


@app.command()
@reported
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Output folders of earlier runs.")
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put the figures of several runs side by side."""
    from vitcompress.console import console
    from vitcompress.report import terminal
    from vitcompress.report.model import Report

    reports = {str(run): Report.read(run) for run in runs}
    console.print(terminal.comparison(reports))
    if as_json:
        _print_json({run: report.final.model_dump() for run, report in reports.items()})


@app.command()
@reported
def schema() -> None:
    """Print the JSON schema of recipes."""
    from vitcompress.recipe import json_schema

    _print_json(json_schema())


@app.command()
@reported
def recipes(as_json: AsJson = False) -> None:
    """List the packaged recipes."""
    from vitcompress.console import console
    from vitcompress.recipe import packaged_recipes, summary

    found = {
        name: summary(path.read_text(encoding="utf-8")) for name, path in packaged_recipes().items()
    }
    if as_json:
        return _print_json(found)
    for name, text in found.items():
        console.print(f"[bold]{name}[/bold]  {text}")


def _print_facts(facts: dict[str, Any], indent: str = "") -> None:
    from vitcompress.console import console

    for key, value in facts.items():
        if isinstance(value, dict):
            console.print(f"{indent}[bold]{key}[/bold]")
            _print_facts(value, indent + "  ")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            console.print(f"{indent}{key}: {shown}", markup=False, soft_wrap=True)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was begun is cleared away
    app()
