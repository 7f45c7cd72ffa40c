"""Memory under load: of a run, by the number of calibration images; of a process, by runs.

    python tests/benchmarks/load.py [--images 500 2000 10000] [--recipes vit-int8 …] [--runs 100]

Prints Markdown tables: the most memory that a process has held (VmHWM) whose run calibrates on so
many images, and what one process holds (VmRSS) after so many calls of `compress`. The model, of the
shape of a small vit_tiny, and the images, 64 × 64 pixels, are drawn; the images lie on the disk.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import timm
import torch
from onnxscript import TracedOnnxFunction
from PIL import Image
from safetensors.torch import save_file

import vitcompress
from vitcompress.console import console
from vitcompress.measure.runtime import time_in_turns

RECIPES = ("vit-int8", "vit-prune", "vit-merge")
NAME, OPTIONS = "vit_tiny_patch16_224", {"patch_size": 16, "depth": 3, "num_heads": 3}
SIDE, JUDGED, CLASSES = 64, 40, 10  # pixels; images to evaluate on
REPORTED = (1, 5, 10, 20, 30, 50, 75, 100)
QUICK = (
    "stages.quant.rounding=nearest",
    "stages.quant.residual=0",
    'stages.quant.layers=["blocks.0.*"]',
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[500, 2_000, 10_000])
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--runs", type=int, default=100, help="calls of compress in one process")
    parser.add_argument("--one", nargs=3, metavar=("RECIPE", "IMAGES", "HOME"), help="one run")
    given = parser.parse_args()
    console.quiet = True
    if given.one:
        recipe, images, home = given.one
        compress(recipe, int(images), Path(home))
        print(f"{status('VmHWM'):.0f}")  # noqa: T201
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        draw(home, max([128, *given.images]))
        if given.images:
            by_images(given.recipes, given.images, home)
        by_runs(given.runs, home)


def draw(home: Path, images: int) -> None:
    """Images on the disk, and a checkpoint."""
    random = np.random.default_rng(0)
    for name, count in (("calibration", images), ("evaluation", JUDGED)):
        for number in range(count):
            place = home / name / str(number % CLASSES)
            place.mkdir(parents=True, exist_ok=True)
            coarse = random.integers(0, 256, (2 + number % 7, 3, 3), dtype=np.uint8)
            drawn = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            drawn.save(place / f"{number:05}.jpg")
    torch.manual_seed(0)
    module = timm.create_model(NAME, img_size=SIDE, num_classes=CLASSES, **OPTIONS)
    save_file(module.state_dict(), home / "x.safetensors")


def compress(recipe: str, images: int, home: Path, *settings: str) -> None:
    options = [f"model.options.{key}={value}" for key, value in OPTIONS.items()]
    with patch("vitcompress.pipeline.time_in_turns", partial(time_in_turns, seconds=0)):
        vitcompress.compress(
            recipe,
            home / "x.safetensors",
            home / "out",
            name=NAME,
            calibration=home / "calibration",
            evaluation=home / "evaluation",
            settings=[*options, f"data.images={images}", *settings],
        )


def status(key: str) -> float:
    """What Linux says of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return int(kilobytes) * 1024 / 1e6


def by_images(recipes: list[str], images: list[int], home: Path) -> None:
    say(["recipe", *(f"{count:,} images" for count in images)])
    for recipe in recipes:
        held = []
        for count in images:
            words = [sys.executable, __file__, "--one", recipe, str(count), str(home)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            held.append(f"{done.stdout.strip()} MB")
        say([f"`{recipe}`", *held], head=False)


def by_runs(runs: int, home: Path) -> None:
    say(["calls of `compress`", "held"])
    parsed = TracedOnnxFunction.function_ir.fget  # of each operator, a second at each export
    TracedOnnxFunction.function_ir = property(cache(parsed))
    for run in range(1, runs + 1):
        compress("vit-int8", 32, home, *QUICK)
        if run in REPORTED or run == runs:
            gc.collect()
            say([str(run), f"{status('VmRSS'):.0f} MB"], head=False)


def say(cells: list[str], head: bool = True) -> None:
    rule = "\n" + "|".join(["", *(["---"] * len(cells)), ""]) if head else ""
    print(f"{chr(10) * head}| {' | '.join(cells)} |{rule}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
