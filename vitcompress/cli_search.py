"""The command that searches."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from vitcompress import ci
from vitcompress.cli_options import (
    AsJson,
    Calibration,
    Ci,
    Classes,
    Device,
    Evaluation,
    Limit,
    LowMemory,
    Name,
    Quiet,
    Resume,
    Seed,
    Settings,
    Threads,
    Verbose,
    given_values,
    recipe_names,
    stem,
)
from vitcompress.console import print_json, say
from vitcompress.errors import InputError

_UNITS = {"s": 1, "m": 60, "h": 3600}


def search(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, or timm:NAME.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="A recipe with choices to search, or the name of a packaged one.",
            autocompletion=recipe_names,
        ),
    ] = "vit-search",
    name: Name = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    classes: Classes = None,
    minimize: Annotated[
        str | None, typer.Option(help="What is to be small: latency, bytes or macs.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Points of top-1 that may be lost.")
    ] = None,
    max_kl: Annotated[float | None, typer.Option(help="The most KL from the dense model.")] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Percent of answers that must stay as they are.")
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(help="The least mean cosine of embeddings to the dense ones.")
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="How long to search: 90s, 40m, 2h. Without it: to the end.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="At most so many candidates.")] = None,
    study: Annotated[
        str | None,
        typer.Option(help="A journal file or a database URL, for several processes to share."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The output folder.")] = None,
    settings: Settings = None,
    limit: Limit = None,
    threads: Threads = 1,
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Resume = True,
    low_memory: LowMemory = False,
    ci_service: Ci = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Search the chain of stages that costs least within the limits on what may be lost."""
    from vitcompress.recipe import check_inputs, find_recipe, load_recipe
    from vitcompress.searching.config import Limits, settings_of

    seconds = None if time_budget is None else _seconds(time_budget)
    limits: Limits = {
        "max_drop.top1": max_drop,
        "max.kl": max_kl,
        "min.agreement": min_agreement,
        "min.cosine": min_cosine,
    }
    told = settings_of(limits, minimize)
    given = given_values(model, name, calibration, evaluation, classes)
    resolved = load_recipe(find_recipe(recipe), [*(settings or ()), *told], given)
    check_inputs(resolved)
    from vitcompress.chain import Options
    from vitcompress.report import terminal
    from vitcompress.searching.search import BEST, PAGE, Effort
    from vitcompress.searching.search import search as searched

    target = out or Path("out") / f"{stem(model)}-search"
    options = Options(seed, device, threads, limit, resume, low_memory)
    outcome = searched(resolved, target, options, Effort(seconds, trials), study)
    say(terminal.table("search", outcome.report.candidates))
    if outcome.best is None:
        none = "no candidate holds the limits; give more choices, or relax a limit"
        say(none, "bold red")
        if ci.on_github(ci_service):
            ci.tell(ci.annotation("error", "vitcompress search", none))
    else:
        say(terminal.summary(outcome.best))
        say(f"written to {target / BEST}: open {target / PAGE}")
        if ci.on_github(ci_service):
            ci.tell_report(outcome.best)
    if as_json:
        best = None if outcome.best is None else json.loads(outcome.best.to_json())
        print_json({"best": best, "candidates": list(outcome.report.candidates.rows)})
    if outcome.best is None or not outcome.best.passed:
        raise typer.Exit(1)


def _seconds(text: str) -> float:
    """Raises `InputError` for what is no time."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None or float(found[1]) == 0:
        raise InputError(f"--time-budget {text}: is no time; write 90s, 40m or 2h")
    return float(found[1]) * _UNITS[found[2] or "s"]
