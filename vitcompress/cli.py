"""The command line: parse, call, print. torch is imported only by the command that needs it."""

import functools
import json
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TypeVar

import typer

from vitcompress import cli_looking, cli_search, parallel, paths
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
    Version,
    given_values,
    stem,
)
from vitcompress.console import console, print_facts, print_json, say
from vitcompress.errors import InputError, VitcompressError

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


@app.callback()
def vitcompress(version: Version = False) -> None:
    """Compress trained Vision Transformers: checkpoint in, verified ONNX out."""


def reported(command: Callable[P, R], together: bool = False) -> Callable[P, R]:
    """Turn what a command raises into one line on stderr and an exit code.

    `together`: whether several processes can share its work. All of them end with the same code.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        console.quiet = bool(kwargs.get("quiet"))

        def end(message: str, code: int) -> NoReturn:
            code, leads = parallel.ending(code)
            console.quiet = not leads
            say(message, "bold red")
            raise typer.Exit(code)

        with ExitStack() as group:
            try:
                group.enter_context(parallel.joined())
                _check_together(command.__name__, together)
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


def _check_together(name: str, together: bool) -> None:
    if not together and not parallel.alone():
        raise InputError(
            f"{name}: runs in one process; start it without torchrun (several searches share their "
            "work by --study)"
        )


def shared(command: Callable[P, R]) -> Callable[P, R]:
    """As `reported`, of a command whose work several processes can share."""
    return reported(command, together=True)


@app.command()
@shared
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
    from vitcompress.recipe import check_inputs, find_recipe, load_recipe

    given = given_values(model, name, calibration, evaluation, classes)
    resolved = load_recipe(find_recipe(recipe), settings or (), given)
    check_inputs(resolved)
    from vitcompress import output, pipeline
    from vitcompress.chain import Options
    from vitcompress.report import terminal
    from vitcompress.report.model import Made

    target = out or Path("out") / f"{stem(resolved.model.checkpoint)}-{Path(recipe).stem}"
    made = Made(recipe=Path(recipe).stem, command=output.command())
    options = Options(seed, device, threads, limit, resume, made)
    report = pipeline.run(resolved, target, options)
    say(terminal.summary(report))
    say(f"written to {target}: open {target / 'report.html'}")
    if as_json and parallel.is_first():
        print_json(json.loads(report.to_json()))
    if not report.passed:
        raise typer.Exit(1)


@app.command()
@reported
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, or timm:NAME.")],
    name: Name = None,
    evaluation: Evaluation = None,
    calibration: Calibration = None,
    classes: Classes = None,
    out: Annotated[Path | None, typer.Option(help="The output folder.")] = None,
    settings: Settings = None,
    limit: Limit = None,
    threads: Threads = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Export a MODEL as it is to ONNX, checked against torch on images: a run without stages."""
    from vitcompress.recipe import check_inputs, recipe_without_stages

    given = given_values(model, name, calibration, evaluation, classes)
    recipe = recipe_without_stages(given, settings or ())
    check_inputs(recipe)
    from vitcompress import output, pipeline
    from vitcompress.chain import Options
    from vitcompress.report import terminal
    from vitcompress.report.model import Made

    made = Made(recipe="export", command=output.command())
    target = out or Path("out") / f"{stem(model)}-fp32"
    report = pipeline.run(recipe, target, Options(threads=threads, limit=limit, made=made))
    say(terminal.summary(report))
    say(f"written to {target}")
    if as_json:
        print_json(json.loads(report.to_json()))


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

    from vitcompress.recipe import check_inputs, find_recipe, load_recipe
    from vitcompress.report.format import size

    given = given_values(model, name)
    resolved = load_recipe(find_recipe(recipe), settings or (), given)
    check_inputs(resolved, images=False)
    from vitcompress import chain

    stages = chain.plan(resolved)
    if as_json:
        return print_json(
            [vars(planned) | {"details": planned.details.model_dump()} for planned in stages]
        )
    table, names = Table("after stage", "MACs", "tensors", "what"), list[str]()
    for planned in stages:
        what = ", ".join(f"{key} {value}" for key, value in planned.details.facts.items())
        table.add_row(planned.stage, f"{planned.macs / 1e9:.3f} G", size(planned.bytes), what)
        for layers in (each for each in planned.details.tables if each.name == "layers"):
            names.append(f"{planned.stage}: {', '.join(str(r['layer']) for r in layers.rows)}")
    say(table)
    for line in names:
        say(line)


@app.command()
@shared
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
    from vitcompress.recipe import check_inputs, find_recipe, load_recipe

    if out is not None:
        paths.check_out(out, (".json", ".html"), "name it .json, or .html for pictures")
    file, given = find_recipe(recipe), given_values(model, name, calibration)
    resolved = load_recipe(file, settings or (), given)
    if score is not None:
        scored = [s.name for s in resolved.stages if s.type == "quantize"]
        if not scored:
            raise InputError("--score: the recipe has no quantize stage; leave the option out")
        given |= {f"stages.{stage}.score": score for stage in scored}
        resolved = load_recipe(file, settings or (), given)
    check_inputs(resolved)
    from vitcompress import chain
    from vitcompress.report import html, terminal

    options = chain.Options(seed=seed, device=device, limit=limit, resume=resume)
    tables = chain.sensitivity(resolved, options)
    if not parallel.is_first():
        return
    for stage, found in tables.items():
        console.print(terminal.table(stage, found), crop=False)
    rows = {stage: found.rows for stage, found in tables.items()}
    if out is not None:
        page = out.suffix == ".html"
        title = stem(resolved.model.checkpoint)
        text = html.sensitivity_page(title, tables) if page else json.dumps(rows, indent=2) + "\n"
        out.write_text(text, encoding="utf-8")
        say(f"written to {out}")
    if as_json:
        print_json(rows)


app.command()(reported(cli_looking.inspect))
app.command()(reported(cli_looking.predict))
app.command("eval")(reported(cli_looking.evaluate))
app.command()(reported(cli_looking.bench))
app.command()(reported(cli_looking.compare))
app.command()(reported(cli_search.search))


@app.command()
@reported
def schema() -> None:
    """Print the JSON schema of recipes."""
    from vitcompress.recipe import json_schema

    print_json(json_schema())


@app.command()
@reported
def recipes(as_json: AsJson = False) -> None:
    """List the packaged recipes."""
    from vitcompress.recipe import packaged_recipes, recipe_summary

    found = {
        name: recipe_summary(path.read_text(encoding="utf-8"))
        for name, path in packaged_recipes().items()
    }
    if as_json:
        return print_json(found)
    for name, text in found.items():
        say(f"{name}: {text}")


@app.command()
@reported
def models(as_json: AsJson = False) -> None:
    """List the families of models, which stages work on them, and the layouts that are known."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from vitcompress import registry, support

    rooms = ("families", "layouts")
    found = {room: registry.summaries(f"vitcompress.model.{room}") for room in rooms}
    rows = support.known()
    if as_json:
        return print_json({**found, "stages": [row.model_dump() for row in rows]})
    print_facts(found)
    head, *below = support.cells(rows)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model (family)", overflow="fold")
    for stage in head[1:]:
        table.add_column(stage, min_width=max(map(len, stage.split())))
    for row, (model, *works) in zip(rows, below, strict=True):
        table.add_row(f"{model} ({row.family})", *works)
    say(table)
    for number, line in enumerate(support.lines(rows), 1):
        say(f"({number}) {line}")


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was begun is cleared away
    app()
