"""The commands about recipes: make one, say what one would do, and list what there is."""

from pathlib import Path
from typing import Annotated

import typer

from vitcompress.cli_options import (
    Against,
    AsJson,
    Calibration,
    Classes,
    Evaluation,
    Limit,
    ModelArgument,
    Name,
    Quiet,
    RecipeArgument,
    Settings,
    Skip,
    given_values,
)
from vitcompress.console import print_facts, print_json, say
from vitcompress.errors import InputError


def init(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, or timm:NAME.")],
    name: Name = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    classes: Classes = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "recipe.yaml"
    ),
    settings: Settings = None,
    quiet: Quiet = False,
) -> None:
    """Write a commented RECIPE for a MODEL: what it is, which stages apply, gates that suit it."""
    if out.exists():
        raise InputError(f"--out {out}: is there already; name another file, or move it away")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it first")
    from vitcompress.recipe import check_inputs, recipe_without_stages

    given = given_values(model, name, calibration, evaluation, classes)
    wanted = recipe_without_stages(given, settings or ())
    check_inputs(wanted)
    from vitcompress.starting import starting_recipe

    text = starting_recipe(wanted)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to: {error.strerror}") from None
    say(f"written to {out}: read it, then see what it would do with: vitcompress plan {out}")


def plan(
    recipe: RecipeArgument,
    model: ModelArgument = None,
    name: Name = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    classes: Classes = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where an earlier output may lie: what its stages took is told."),
    ] = None,
    settings: Settings = None,
    skip: Skip = None,
    limit: Limit = None,
    against: Against = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what a RECIPE would do to a MODEL: layers, MACs, bytes. Writes nothing."""
    from vitcompress.recipe import check_inputs, find_recipe, load_recipe, without

    given = given_values(model, name, calibration, evaluation, classes)
    resolved = without(load_recipe(find_recipe(recipe), settings or (), given), skip or ())
    looks = calibration is not None or evaluation is not None
    check_inputs(resolved, images=looks)
    from vitcompress.report.model import Report

    earlier = None if against is None else Report.read(against)
    from vitcompress import chain
    from vitcompress.report.plan import shown

    options = chain.Options(limit=limit) if looks else None
    stages, took = chain.plan(resolved, options, earlier, out)
    if as_json:
        rows = [vars(each) | {"details": each.details.model_dump()} for each in stages]
        return print_json([row | {"seconds": took.seconds.get(row["stage"])} for row in rows])
    for what in shown(stages, took):
        say(what)


def schema() -> None:
    """Print the JSON schema of recipes."""
    from vitcompress.recipe import json_schema

    print_json(json_schema())


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
