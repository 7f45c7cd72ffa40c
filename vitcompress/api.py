"""What the commands do, for Python: of models and images in memory too."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

from torch import nn

from vitcompress import given, parallel
from vitcompress.chain import Options
from vitcompress.claims import scratch
from vitcompress.dense import load_dense
from vitcompress.export.folder import load_folder
from vitcompress.memory import give_back
from vitcompress.pipeline import run
from vitcompress.recipe import Recipe, check_inputs, find_recipe, load_recipe
from vitcompress.report.model import Made, Report
from vitcompress.searching import config
from vitcompress.searching.search import Effort, Outcome
from vitcompress.searching.search import search as searched

PathLike = str | os.PathLike[str]
Model = PathLike | nn.Module
"""A checkpoint, `timm:NAME`, or a module of timm, or with the names and shapes of one."""

Images = PathLike | given.Prepareds
"""A folder, .tar or .npz of images, or a DataLoader or other iterable of prepared pixels."""


class RunOptions(TypedDict, total=False):
    """The fields of `chain.Options`."""

    seed: int
    device: str
    threads: int
    limit: int | None
    resume: bool
    low_memory: bool


class _Sources(NamedTuple):
    model: Model | None
    name: str | None
    calibration: Images | None
    evaluation: Images | None
    classes: PathLike | None


def compress(
    recipe: PathLike,
    model: Model | None = None,
    out: PathLike = "out",
    *,
    name: str | None = None,
    calibration: Images | None = None,
    evaluation: Images | None = None,
    classes: PathLike | None = None,
    settings: Sequence[str] = (),
    **options: Unpack[RunOptions],
) -> Report:
    """Run `recipe` on `model` and write the folder `out`, as `vitcompress run` does.

    `name`: what timm calls the model, where neither it nor its checkpoint tells. Of images that are
    given as tensors, prepared as the model takes them, so many are taken as the recipe calibrates
    on, and all to judge on. `settings` are overrides such as `"stages.quant.residual=0"`. A failed
    gate is no error: look at `report.passed`. In processes that torchrun has started they share the
    work.

    Raises:
        errors.InputError: the recipe, the model or the images are wrong.
        errors.RunError: the run could not be carried through.
        errors.ParityError: the exported model does not compute what the torch model computes.
    """
    sources = _Sources(model, name, calibration, evaluation, classes)
    with parallel.joined(), _resolved(recipe, sources, settings) as resolved:
        made = Made(recipe=Path(recipe).stem)
        report = run(resolved, Path(out), Options(**options, made=made))
    give_back()
    return report


def search(
    model: Model,
    out: PathLike = "out",
    *,
    recipe: PathLike = "vit-search",
    name: str | None = None,
    calibration: Images | None = None,
    evaluation: Images | None = None,
    classes: PathLike | None = None,
    settings: Sequence[str] = (),
    limits: config.Limits | None = None,
    minimize: config.Cost | None = None,
    seconds: float | None = None,
    trials: int | None = None,
    study: str | None = None,
    **options: Unpack[RunOptions],
) -> Outcome:
    """Search the chain of stages that costs least within `limits`, as `vitcompress search` does.

    It takes at most so many `seconds` and `trials`; several processes share a `study`, a journal
    file or a database URL. The folder `out/best` is a complete output. Else as `compress`.
    """
    told = config.settings_of(limits or {}, minimize)
    sources = _Sources(model, name, calibration, evaluation, classes)
    with _resolved(recipe, sources, [*settings, *told]) as resolved:
        return searched(resolved, Path(out), Options(**options), Effort(seconds, trials), study)


def load(folder: PathLike) -> nn.Module:
    """The compressed model of an output folder: pixels [n, C, H, W] → outputs [n, ...].

    Raises `errors.InputError` when the folder holds no model that this version can read.
    """
    return load_folder(Path(folder)).module


@contextmanager
def _resolved(recipe: PathLike, sources: _Sources, settings: Sequence[str]) -> Iterator[Recipe]:
    """The recipe over files, which hold what is in memory, and go in the end."""
    file = find_recipe(os.fspath(recipe))
    with scratch() as home:
        model, name = sources.model, sources.name
        if isinstance(model, nn.Module):
            model, name = given.checkpoint_of(model, name, home)
        most = _images_of(load_recipe(file, settings), sources.evaluation is None)
        values = {
            "model.checkpoint": _path(model),
            "model.name": name,
            "data.calibration": _images(sources.calibration, home / "calibration.tar", most),
            "data.evaluation": _images(sources.evaluation, home / "evaluation.tar", None),
            "data.classes": _path(sources.classes),
        }
        resolved = load_recipe(file, settings, values)
        check_inputs(resolved)
        if isinstance(sources.model, nn.Module):
            given.check_same(sources.model, load_dense(resolved))
        yield resolved


def _images_of(recipe: Recipe, judging: bool) -> int:
    """How many calibration images can be of use; `judging`: on some of them too."""
    return (1 + judging) * (recipe.data.images + recipe.search.images)


def _path(path: PathLike | None) -> str | None:
    return os.fspath(path) if path else None


def _images(images: Images | None, file: Path, most: int | None) -> str | None:
    """Where `images` are: where they come from memory, in `file`."""
    if images is None or isinstance(images, str | os.PathLike):
        return _path(images)
    return str(given.archive_of(images, file, most))
