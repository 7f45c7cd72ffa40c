"""How fast the packaged recipes make models of the sizes that people deploy: a Markdown table each.

    python tests/benchmarks/sizes.py [NAME[@PIXELS] ...] --out DIR [--recipes RECIPE ...]

Speed does not depend on what weights are: they are drawn, and so are the few images on which the
stages of a recipe run, set to their cheapest choices. What is made stays in DIR, and is not made
again; `--seconds 0` only makes it. The fp32 export and all files are timed in turns on each number
of threads and batch; times are against the fp32 export. What a model does not allow stands below
its table.
"""

import argparse
import gc
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from common import Key, beside, context_of, drawn, size, timed

from vitcompress import processor
from vitcompress.console import say
from vitcompress.errors import InputError
from vitcompress.export.folder import save_folder
from vitcompress.export.onnx import export_onnx
from vitcompress.measure.runtime import Timing
from vitcompress.model.architecture import VitModel
from vitcompress.place import writing
from vitcompress.recipe import Recipe, find_recipe, load_recipe, packaged_recipes
from vitcompress.stages.registry import stage_of
from vitcompress.targets import DEFAULT

MODELS = (
    "vit_small_patch16_224",  # which DeiT-S is too
    "vit_base_patch16_224",
    "vit_small_patch14_dinov2@518",
    "swin_tiny_patch4_window7_224",
    "vit_base_patch14_dinov2@224",
)
LEFT_OUT = {
    "vit-search": "the graphs of the others, put together",
    "vit-search-small": "the graphs of the others, put together",
    "quickstart": "vit-int8 of the embedded example",
    "vit-2of4": "zeros gain no speed",
    "vit-2of4-int4": "zeros gain no speed",
    "vit-2of4-int8": "zeros gain no speed",
    "vit-block": "zeros gain no speed",
    "vit-mixed-lrp": "its layers run in the kernels of vit-int8 and vit-w4a8",
    "vit-prune-latency": "the graph of vit-prune, its widths measured",
    "vit-embed-int8": "the graph of vit-int8",
    "vit-embed-fast": "the graph of vit-merge-int8",
    "embed-fast": "the graph of vit-merge-int8",
    "vit-fast": "the graph of vit-prune-int8, with fewer tokens",
    "vit-small": "zeros gain no speed",
    "swin-fast": "the graph of vit-prune-int8",
}
"""Recipes that are made only where `--recipes` names them, and why."""
# By type of stage; what is searched or refitted otherwise.
CHEAP: dict[str, dict[str, str]] = {
    "prune": {"saliency": "magnitude", "compensate": "false", "rotate": "false"},
    "merge": {"schedule": "published", "images": "8"},
    "quantize": {"rounding": "nearest", "score": "uniform", "reparametrise": "false"},
}
IMAGES = {"prune": 8}  # by type of stage; the others are content with one
FP32 = "fp32 export"
RUNS = 10  # of each file, at least

Made = dict[str, Path]
"""Files by the name of their recipe, the fp32 export first."""


def cheap(name: str) -> Recipe:
    """A packaged recipe whose stages choose in a moment."""
    file = find_recipe(name)
    settings = [
        f"stages.{config.name}.{key}={value}"
        for config in load_recipe(file).stages
        for key, value in CHEAP.get(config.type, {}).items()
    ]
    return load_recipe(file, settings)


def compressed(dense: VitModel, recipe: Recipe) -> VitModel:
    """What the stages of a recipe make of a model on images that are drawn."""
    height, width = dense.preprocess.input_size
    pixels = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), np.uint8)
    model = dense.with_task(recipe.task)
    with TemporaryDirectory() as place:
        images = Path(place) / "images.npz"
        np.savez(images, images=pixels)
        for config in recipe.stages:
            context = context_of(model, str(images), IMAGES.get(config.type, 1), Path(place))
            model = stage_of(config).run(model, config, context).model
    return model


def parsed(text: str) -> tuple[str, int]:
    """The timm name and the pixels a side that `NAME[@PIXELS]` means."""
    name, _, pixels = text.partition("@")
    return name, int(pixels or timm.get_pretrained_cfg(name).input_size[-1])


def made(name: str, side: int, recipes: list[str], home: Path) -> tuple[Made, dict[str, str]]:
    """The files of a model, made where they are missing, and why others cannot be."""
    there, refused = Made(), dict[str, str]()
    for recipe in (FP32, *recipes):
        folder, start = home / recipe.replace(" ", "-"), time.monotonic()
        try:
            if not folder.exists():
                result = drawn(name, {"img_size": side}, side)
                if recipe != FP32:
                    result = compressed(result, cheap(recipe))
                with writing(folder) as partial:
                    export_onnx(result, partial / "model.onnx", {})
                    save_folder(result, partial)
                say(f"{name}: {recipe} made in {time.monotonic() - start:.0f} s")
            there[recipe] = folder / "model.onnx"
        except InputError as error:
            refused[recipe] = str(error)
            say(f"{name}: {recipe} refused: {error}")
        gc.collect()  # models hold themselves
    return there, refused


def times(files: Made, side: int, given: argparse.Namespace) -> dict[str, dict[str, Timing]]:
    """By the title of a column, the latencies of all files."""
    found: dict[str, dict[str, Timing]] = {}
    keyed: dict[Key, Path] = {(name, DEFAULT): file for name, file in files.items()}
    for threads in given.threads:
        for batch in given.batches:
            title = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
            pixels = np.random.default_rng(0).normal(size=(batch, 3, side, side)).astype(np.float32)
            taken = timed(keyed, pixels, threads, given.seconds, RUNS)
            found[title] = {name: timing for (name, _), timing in taken.items()}
            say(f"{title}: " + ", ".join(f"{n} {t.p50:.1f} ms" for n, t in found[title].items()))
    return found


def markdown(
    title: str, files: Made, found: dict[str, dict[str, Timing]], refused: dict[str, str]
) -> Iterator[str]:
    yield f"| {title} | file | {' | '.join(found)} |"
    yield "|---" * (2 + len(found)) + "|"
    for name, file in files.items():
        cells = [beside(column[name], column[FP32]) for column in found.values()]
        yield f"| {name} | {size(file) / 1e6:.1f} MB | {' | '.join(cells)} |"
    yield ""
    yield from (f"{name}: {why}" for name, why in refused.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [name for name in packaged_recipes() if name not in LEFT_OUT]
    parser.add_argument("models", nargs="*", default=MODELS, metavar="NAME[@PIXELS]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recipes", nargs="+", choices=packaged_recipes(), default=every)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sizes to time")
    parser.add_argument("--seconds", type=float, default=3, help="to time a file; 0: not at all")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    for name, side in map(parsed, given.models):
        title = f"{name}, {side} pixels"
        files, refused = made(name, side, given.recipes, given.out / f"{name}-{side}")
        if given.seconds:
            found = times(files, side, given)
            print("\n".join(markdown(title, files, found, refused)), "\n")  # noqa: T201
    print(f"{processor.name()}: {processor.instructions()}")  # noqa: T201


if __name__ == "__main__":
    main()
