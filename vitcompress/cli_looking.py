"""The commands that look at models and change nothing."""

from pathlib import Path
from typing import Annotated

import typer

from vitcompress import ci, paths
from vitcompress.cli_options import (
    AsJson,
    Ci,
    Classes,
    Limit,
    Name,
    Quiet,
    Settings,
    Threads,
    given_values,
)
from vitcompress.console import console, print_facts, print_json, say
from vitcompress.errors import InputError


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Checkpoint, output folder or ONNX.")],
    name: Name = None,
    settings: Settings = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what a checkpoint, an output folder or an ONNX file holds."""
    paths.check_path(path, paths.CHECKPOINT)
    from vitcompress.recipe import recipe_without_stages

    recipe = recipe_without_stages(given_values(path, name), settings or ())
    from vitcompress import inspection

    facts = inspection.facts(recipe)
    print_json(facts) if as_json else print_facts(facts)


def predict(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="An output folder, or the ONNX file of one.")
    ],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")
    ],
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="The probability from which an output means yes.")
    ] = 0.5,
    npz: Annotated[
        Path | None, typer.Option(help="A .npz file for the outputs [n, ...], and images' names.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what the model of a RUN makes of images, as the `predict.py` in its folder does."""
    paths.check_path(model, paths.CHECKPOINT)
    for image in images:
        paths.check_path(image, paths.IMAGES)
    from vitcompress.export import predict as script

    file = Path(model) / script.MODEL if paths.is_folder(model) else Path(model)
    try:
        held = script.load(file)
        found = list(script.predictions(held, images, threshold))
        if npz is not None:
            script.written(found, npz)
    except script.BadInput as error:
        raise InputError(str(error)) from error
    if as_json:
        return print_json(script.as_json(found, held.task))
    for each in found:
        say(script.told(each))


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
    dense: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What it was made from, to hold it against.")
    ] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Measure corrupted images too.")
    ] = False,
    settings: Settings = None,
    limit: Limit = None,
    ci_service: Ci = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the accuracy of a MODEL, on average, by class, and on corrupted images."""
    paths.check_path(model, paths.CHECKPOINT)
    paths.check_path(dense, paths.CHECKPOINT)
    paths.check_path(evaluation, paths.IMAGES)
    from vitcompress.recipe import recipe_without_stages

    given = given_values(model, name, None, evaluation, classes)
    recipe = recipe_without_stages(given, settings or ())
    rival = None
    if dense is not None:
        rival = recipe_without_stages({**given, "model.checkpoint": dense}, settings or ())
    from vitcompress import inspection
    from vitcompress.report import terminal

    found, tables = inspection.evaluate(recipe, limit, rival, robustness)
    facts = found.model_dump(exclude_none=True)
    if ci.on_github(ci_service):
        from vitcompress.report import figures

        ci.summarise(f"`{model}` on `{evaluation}`: {figures.told(found)}")
    if as_json:
        return print_json(facts | {table.name: table.rows for table in tables})
    print_facts(facts)
    for table in tables:
        console.print(terminal.table(table.name, table), crop=False)


def bench(
    first: Annotated[str, typer.Argument(metavar="A", help="An ONNX file or an output folder.")],
    second: Annotated[str | None, typer.Argument(metavar="[B]", help="A second one.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=65535, help="Images at a time.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, max=3600, help="Time for each model.")] = 5.0,
    threads: Threads = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time one ONNX file, or two in turns, each in the runtime it was exported for."""
    from vitcompress import inspection

    facts = inspection.bench([first, *([second] if second else [])], batch, seconds, threads)
    print_json(facts) if as_json else print_facts(facts)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Output folders of earlier runs.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="A file for a page with pictures, .html.")
    ] = None,
    ci_service: Ci = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put the figures of several runs side by side."""
    if out is not None:
        paths.check_out(out, (".html",), "name it .html")
    from vitcompress.report import compare as comparing
    from vitcompress.report import markdown, terminal

    found = {str(run): comparing.read(run) for run in runs}
    reports = {name: run.report for name, run in found.items()}
    console.print(terminal.comparison(reports, console.width), crop=False)
    if ci.on_github(ci_service):
        for run, report in reports.items():
            ci.tell(*ci.annotations(report, run))
        ci.summarise(markdown.comparison(reports))
    if out is not None:
        out.write_text(comparing.render(found), encoding="utf-8")
        say(f"written to {out}")
    if as_json:
        print_json(comparing.as_json(found))


def docs(
    page: Annotated[
        str | None, typer.Argument(metavar="[PAGE]", help="The page to read; without it: a list.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Read the documentation."""
    from rich.console import Console
    from rich.markdown import Markdown

    from vitcompress import docs

    if page is None:
        for name, title in docs.pages().items():
            say(f"{name}: {title}")
        return
    text = docs.page(page)
    out = Console()
    out.print(Markdown(text) if out.is_terminal else text, markup=False, soft_wrap=True)
