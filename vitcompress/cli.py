"""The command line: parse, call, print. torch is imported only by the command that needs it."""

import errno
import functools
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from typer.core import TyperGroup

from vitcompress import ci, cli_looking, cli_recipes, cli_search, parallel, paths
from vitcompress.cli_options import (
    Against,
    AsJson,
    Calibration,
    Ci,
    Classes,
    Device,
    Evaluation,
    Limit,
    LowMemory,
    ModelArgument,
    Name,
    Quiet,
    RecipeArgument,
    Resume,
    Seed,
    Settings,
    Skip,
    Threads,
    Verbose,
    Version,
    given_values,
    stem,
)
from vitcompress.console import console, print_json, say
from vitcompress.errors import InputError, ShortageError, VitcompressError, lacks_memory
from vitcompress.lines import printable, shortened

P = ParamSpec("P")
R = TypeVar("R")


class _Group(TyperGroup):
    """Tells a wrong use of a command in one line, as everything that is wrong is told."""

    def main(self, *args: Any, **options: Any) -> Any:
        given = args[0] if args else options.get("args")
        if not (sys.argv[1:] if given is None else given):  # which shows the help
            return super().main(*args, **options)
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            command = "vitcompress" if context is None else context.command_path
            reason = error.format_message().rstrip(".")
            _tell_error(f"error: {reason}; {command} --help shows its use", command, None)
            code = error.exit_code
        sys.exit(code)


# What the system says of a path that somebody gave, wherever it comes to be used.
_OF_PATHS = (errno.ENAMETOOLONG, errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _tell_error(message: str, command: str, service: ci.Service | None) -> None:
    console.quiet = False
    say(message, "bold red")
    if ci.on_github(service):
        ci.tell(ci.annotation("error", command, message))


app = typer.Typer(
    cls=_Group,
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


def reported(
    command: Callable[P, R], together: bool = False, name: str | None = None
) -> Callable[P, R]:
    """Turn what a command raises into one line on stderr and an exit code.

    `together`: whether several processes can share its work. All of them end with the same code.
    `name`: what the command is called, where its function has another name.
    """
    called = name or command.__name__

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        console.quiet, console.verbose = bool(kwargs.get("quiet")), bool(kwargs.get("verbose"))

        def end(message: str, code: int, short: bool = False) -> NoReturn:
            code, leads = parallel.ending(code)
            if leads:
                given = kwargs.get("ci_service")
                service = given if isinstance(given, ci.Service) else None
                _tell_error(message, f"vitcompress {called}", service)
            raise _EndAtOnce(code) if short else typer.Exit(code)

        with ExitStack() as group:
            try:
                group.enter_context(parallel.joined())
                _check_together(called, together)
                return command(*args, **kwargs)
            except KeyboardInterrupt:
                end("interrupted: nothing was left half written", 130)
            except typer.Exit:
                raise
            except Exception as error:
                if os.environ.get("VITCOMPRESS_DEBUG"):
                    traceback.print_exc()
                short = isinstance(error, ShortageError) or lacks_memory(error)
                end(*_explained(error, called), short)

    return wrapped


class _EndAtOnce(SystemExit):
    """All is told and cleared away. To take the interpreter down needs memory too: it hung."""


def _explained(error: Exception, command: str) -> tuple[str, int]:
    """The line that says why `command` has ended with `error`, and its exit code."""
    if isinstance(error, VitcompressError):
        return f"error: {error}{_noted(error)}", error.exit_code
    if isinstance(error, OSError) and error.errno in _OF_PATHS and error.filename:
        place = shortened(printable(str(error.filename)), 200)
        return f"error: {place}: {error.strerror}; give another path{_noted(error)}", 2
    if lacks_memory(error):
        return f"failed: {ShortageError(command)}{_noted(error)}", 3
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    where = _noted(error) or " (VITCOMPRESS_DEBUG=1 shows where)"
    return f"failed: {reason}{where}", 3


def _noted(error: BaseException) -> str:
    """The notes that were added to `error`, to be put behind what it says."""
    return "".join(f"; {printable(note)}" for note in getattr(error, "__notes__", ()))


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
    skip: Skip = None,
    limit: Limit = None,
    threads: Threads = 1,
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Resume = False,
    low_memory: LowMemory = False,
    against: Against = None,
    ci_service: Ci = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run a RECIPE on a MODEL; write weights, ONNX and a report; exit 1 when a gate fails."""
    from vitcompress.recipe import check_inputs, find_recipe, load_recipe, without

    given = given_values(model, name, calibration, evaluation, classes)
    resolved = without(load_recipe(find_recipe(recipe), settings or (), given), skip or ())
    check_inputs(resolved)
    from vitcompress.report.model import Made, Report

    earlier = None if against is None else Report.read(against)
    from vitcompress import output, pipeline
    from vitcompress.chain import Options
    from vitcompress.report import terminal

    target = out or Path("out") / f"{stem(resolved.model.checkpoint)}-{Path(recipe).stem}"
    made = Made(recipe=Path(recipe).stem, command=output.command())
    options = Options(seed, device, threads, limit, resume, low_memory, made)
    report = pipeline.run(resolved, target, options, earlier=earlier)
    say(terminal.summary(report))
    say(f"written to {target}: open {target / 'report.html'}")
    if ci.on_github(ci_service) and parallel.is_first():
        ci.tell_report(report)
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
    verbose: Verbose = False,
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
    attention: Annotated[
        bool,
        typer.Option(
            "--attention", help="What fewer links of attention would cost, in place of the stages."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A file for the tables: .json, or .html with pictures.")
    ] = None,
    settings: Settings = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Resume = False,
    low_memory: LowMemory = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show what each part of a MODEL would cost if the stages of a RECIPE compressed it."""
    from vitcompress.recipe import check_inputs, find_recipe, load_recipe

    if out is not None:
        paths.check_out(out, (".json", ".html"), "name it .json, or .html for pictures")
    file, given = find_recipe(recipe), given_values(model, name, calibration)
    resolved = load_recipe(file, settings or (), given)
    if attention and score is not None:
        raise InputError("--score: with --attention no layer has bits; leave one of them out")
    if score is not None:
        scored = [s.name for s in resolved.stages if s.type == "quantize"]
        if not scored:
            raise InputError("--score: the recipe has no quantize stage; leave the option out")
        given |= {f"stages.{stage}.score": score for stage in scored}
        resolved = load_recipe(file, settings or (), given)
    check_inputs(resolved)
    from vitcompress import chain
    from vitcompress.report import html, terminal

    options = chain.Options(
        seed=seed, device=device, limit=limit, resume=resume, low_memory=low_memory
    )
    look = chain.attention if attention else chain.sensitivity
    tables = look(resolved, options)
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


app.command()(reported(cli_recipes.init))
app.command()(reported(cli_recipes.plan))
app.command()(reported(cli_recipes.schema))
app.command()(reported(cli_recipes.recipes))
app.command()(reported(cli_recipes.models))
app.command()(reported(cli_looking.inspect))
app.command()(reported(cli_looking.docs))
app.command()(reported(cli_looking.predict))
app.command("eval")(reported(cli_looking.evaluate, name="eval"))
app.command()(reported(cli_looking.bench))
app.command()(reported(cli_looking.compare))
app.command()(reported(cli_search.search))


def main() -> None:
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, about what they read; python -W shows them
    for name in ("SIGTERM", "SIGHUP"):  # after which what was begun is cleared away
        ending = getattr(signal, name, None)  # not every system has both
        if ending is not None and signal.getsignal(ending) is not signal.SIG_IGN:  # as by nohup
            signal.signal(ending, signal.default_int_handler)
    try:
        app()
    except _EndAtOnce as ended:
        os._exit(int(ended.code or 0))
