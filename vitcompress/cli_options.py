"""What the commands can be given: arguments and options that several of them share."""

from pathlib import Path
from typing import Annotated

import typer

from vitcompress import __version__, ci
from vitcompress.terms import AGAINST


def recipe_names(incomplete: str) -> list[tuple[str, str]]:
    """For completion in a shell: packaged recipes that begin so, with what they say of themselves.

    Where there is none, the shell completes files.
    """
    from vitcompress.recipe import packaged_recipes, recipe_summary

    return [
        (name, recipe_summary(path.read_text(encoding="utf-8")))
        for name, path in packaged_recipes().items()
        if name.startswith(incomplete)
    ]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or the name of a packaged recipe.",
        autocompletion=recipe_names,
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A checkpoint, or timm:NAME. Wins over the recipe."),
]
Name = Annotated[str | None, typer.Option("--model", help="The timm name of the architecture.")]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Unlabelled images: a folder, .tar or .npz.", envvar="VITCOMPRESS_CALIBRATION"
    ),
]
Evaluation = Annotated[
    str | None,
    typer.Option(
        help="Images to judge on: class folders, .tar or .npz.", envvar="VITCOMPRESS_EVALUATION"
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        help="Folder names, one a line in the model's order.", envvar="VITCOMPRESS_CLASSES"
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe: data.KEY=VALUE."),
]
Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="STAGE", help="Leave a stage of the recipe out."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many images of each set.")]
Threads = Annotated[
    int,
    typer.Option(
        min=1, max=1024, help="onnxruntime threads for latency.", envvar="VITCOMPRESS_THREADS"
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=2**63 - 1, help="Of calibration and sampling.", envvar="VITCOMPRESS_SEED"
    ),
]
Device = Annotated[str, typer.Option(help="Where torch runs.", envvar="VITCOMPRESS_DEVICE")]
Resume = Annotated[
    bool, typer.Option("--resume/--fresh", help="Reuse calibration results of an earlier run.")
]
LowMemory = Annotated[
    bool,
    typer.Option(
        "--low-memory", help="Keep weights and statistics in temporary files (in TMPDIR)."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Ci = Annotated[
    ci.Service | None,
    typer.Option(
        "--ci",
        help="Errors, failed gates and warnings as annotations, and a summary of the job: by "
        "default where GITHUB_ACTIONS=true says so.",
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        help="An earlier run, its folder or report.json, than which this one must not be worse by "
        "more than gates.against in the recipe, or else: "
        + ", ".join(f"{figure} {limit:g}" for figure, limit in AGAINST.items())
        + " (points; ratios of bytes and latency)."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="The version.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Details on stderr, too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")]


def stem(checkpoint: str | None) -> str:
    """A file name for the model: `timm:vit_tiny` → vit_tiny, `a/b.safetensors` → b."""
    return Path((checkpoint or "model").rpartition(":")[2]).stem


def given_values(
    model: str | None,
    name: str | None,
    calibration: str | None = None,
    evaluation: str | None = None,
    classes: Path | None = None,
) -> dict[str, str | None]:
    """What the command line sets in a recipe, by dotted key."""
    return {
        "model.checkpoint": model,
        "model.name": name,
        "data.calibration": calibration,
        "data.evaluation": evaluation,
        "data.classes": None if classes is None else str(classes),
    }
