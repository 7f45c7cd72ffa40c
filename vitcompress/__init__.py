"""Compress trained Vision Transformers: checkpoint in, verified ONNX out.

report = vitcompress.compress("vit-int8", "deit.safetensors", "out/deit", calibration="images")
model = vitcompress.load("out/deit")
logits = model(pixels)
"""

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is slow to import, and the command line may not need it
    from torch import nn

    from vitcompress.report.model import Report

__all__ = ["__version__", "compress", "load"]

__version__ = version("vitcompress")


def compress(
    recipe: str | Path,
    model: str | Path | None = None,
    out: str | Path = "out",
    *,
    calibration: str | Path | None = None,
    evaluation: str | Path | None = None,
    classes: str | Path | None = None,
    settings: tuple[str, ...] = (),
    **options: Any,
) -> "Report":
    """Run `recipe` on `model` and write the folder `out`, as `vitcompress run` does.

    `settings` are overrides such as `"stages.quant.residual=0"`; `options` are the fields of
    `chain.Options` (seed, device, threads, limit, resume, low_memory). A failed gate is no error:
    look at `report.passed`. In processes that torchrun has started they share the work.

    Raises:
        errors.InputError: the recipe, the checkpoint or the images are wrong.
        errors.RunError: the run could not be carried through.
        errors.ParityError: the exported model does not compute what the torch model computes.
    """
    from vitcompress.recipe import check_inputs, find_recipe, load_recipe

    given = {
        "model.checkpoint": model,
        "data.calibration": calibration,
        "data.evaluation": evaluation,
        "data.classes": classes,
    }
    values = {key: os.fspath(value) if value else None for key, value in given.items()}
    resolved = load_recipe(find_recipe(os.fspath(recipe)), settings, values)
    check_inputs(resolved)
    from vitcompress import parallel
    from vitcompress.chain import Options
    from vitcompress.pipeline import run

    with parallel.joined():
        return run(resolved, Path(out), Options(**options))


def load(folder: str | Path) -> "nn.Module":
    """The compressed model of an output folder: pixels [n, C, H, W] → logits [n, classes].

    Raises `errors.InputError` when the folder holds no model that this version can read.
    """
    from vitcompress.export.folder import load_folder

    return load_folder(Path(folder)).module
