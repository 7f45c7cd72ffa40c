"""What recipes lose on models, against figures that were measured before.

    pytest -m slow tests/golden                           # holds them against figures.json
    VITCOMPRESS_GOLDEN=write pytest -m slow tests/golden  # writes them, where a change is meant

Few images, and all in torch: the figures are no claims about accuracy, they only have to be steady.
"""

import io
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from common import drawn
from PIL import Image
from torch import Tensor

from vitcompress import chain
from vitcompress.data.images import ImageSet, batches, open_images
from vitcompress.dense import load_dense
from vitcompress.export.folder import stored_bytes
from vitcompress.model.architecture import VitModel
from vitcompress.recipe import Recipe, recipe_without_stages
from vitcompress.stages.context import Context

FIGURES = Path(__file__).with_name("figures.json")
ASSETS = Path(__file__).parents[3] / "shared" / "assets"
WRITES = os.environ.get("VITCOMPRESS_GOLDEN") == "write"
IMAGES, JUDGED = 16, 48  # to calibrate on, and to judge on

# Processors add in other orders, and a value between two codes then goes to the other one: sizes
# do not move, divergences by some percent, and answers between two classes come out otherwise.
KL, AGREEMENT, BYTES = 0.25, 100 * 2.5 / JUDGED, 0.005  # a share, points, a share
STEADY = 2e-4  # nats or cosine below which a share says nothing

STAGES: dict[str, dict[str, Any]] = {
    "int8": {"type": "quantize", "rounding": "nearest", "residual": 0},
    "int4": {"type": "quantize", "bits": 4, "rounding": "gptq", "residual": 0},
    "prune": {"type": "prune", "budget": {"macs": 0.8}, "allocate": "uniform", "multiple": 4},
    "2:4": {"type": "sparsify", "layers": ["*mlp*"]},
    "merge": {
        "type": "merge",
        "method": "tome",
        "schedule": "constant",
        "budget": {"macs": 0.5},  # of two blocks with few tokens, less merges none
        "images": 8,
    },
}
WEIGHTS = ("int8", "int4", "prune", "2:4")  # of any family

_PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
_WINDOWED = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2)}
_SWIN = {**_WINDOWED, "num_heads": (2, 4), "num_classes": 10}
# Of each family: a name of timm, its options, and the stages.
DRAWN: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "plain": ("vit_tiny_patch16_224", {**_PLAIN, "num_classes": 10}, (*WEIGHTS, "merge")),
    "embedding": ("vit_tiny_patch16_224", {**_PLAIN, "num_classes": 0}, (*WEIGHTS, "merge")),
    "beit": ("beit_base_patch16_224", {**_PLAIN, "num_classes": 10}, WEIGHTS),
    "rotary": ("eva02_tiny_patch14_224", {**_PLAIN, "num_classes": 10}, ("int8", "int4", "prune")),
    "windowed": ("swin_tiny_patch4_window7_224", _SWIN, WEIGHTS),
    "windowed, V2": ("swinv2_tiny_window8_256", _SWIN, ("int8", "int4", "2:4")),
}
# Of real checkpoints: what a recipe is told of them, their images, and the stages.
_SWIN_FACTS = json.dumps(
    {"img_size": 32, "patch_size": 2, "embed_dim": 48, "depths": [2, 2, 2], "window_size": 4}
    | {"num_heads": [3, 6, 12]}
)
REAL: dict[str, tuple[str, tuple[str, ...], str, tuple[str, ...]]] = {
    "deit_tiny": ("deit_tiny_patch16_224.in1k", (), "imagenet1k", ("int8", "int4", "merge")),
    "vit_tiny": ("vit_tiny_patch16_224.tinyimagenet200", (), "tinyimagenet200", ("int8", "prune")),
    "swin": (
        "swin_cifar10",
        ("model.name=swin_tiny_patch4_window7_224", f"model.options={_SWIN_FACTS}"),
        "cifar10",
        WEIGHTS,
    ),
}


class Case(NamedTuple):
    dense: VitModel
    calibration: ImageSet
    pixels: Tensor


def textures() -> ImageSet:
    random, files = np.random.default_rng(2), []
    for i in range(IMAGES + JUDGED):
        coarse = random.integers(0, 256, (2 + i % 7, 3, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(file, "PNG")
        files.append(file.getvalue())
    return ImageSet(
        "drawn", [f"{i:02}.png" for i in range(len(files))], None, None, files.__getitem__
    )


def case_of(dense: VitModel, images: ImageSet) -> Case:
    judged = images.subset(range(IMAGES, IMAGES + JUDGED))
    pixels = torch.cat([batch.pixels for batch in batches(judged, dense.preprocess, 16)])
    return Case(dense, images.subset(range(IMAGES)), pixels)


def made(name: str) -> Case:
    timm_name, options, _ = DRAWN[name]
    return case_of(drawn(timm_name, options, 32), textures())


def real(name: str) -> Case:
    checkpoint, settings, images, _ = REAL[name]
    file, folder = ASSETS / "checkpoints" / f"{checkpoint}.safetensors", ASSETS / images
    if not file.exists():
        pytest.skip(f"{file}: not here")
    dense = load_dense(recipe_without_stages({"model.checkpoint": str(file)}, settings))
    found = open_images(folder / "calibration", labelled=False, limit=IMAGES + JUDGED, seed=0)
    return case_of(dense, found)


CASES: dict[str, tuple[Callable[[], Case], tuple[str, ...]]] = {
    **{name: (partial(made, name), held[-1]) for name, held in DRAWN.items()},
    **{name: (partial(real, name), held[-1]) for name, held in REAL.items()},
}


@torch.no_grad()
def measured(case: Case, stage: str, context: Context) -> dict[str, float]:
    """What is left of the model, against the dense one."""
    recipe = Recipe.model_validate({"stages": [{"name": "it", **STAGES[stage]}]})
    torch.manual_seed(0)
    model = chain.carry_out(recipe.stages[0], case.dense, context).model
    parts = case.pixels.split(16)
    before, after = (torch.cat([m.module(p) for p in parts]) for m in (case.dense, model))
    assert not torch.equal(before, after), f"{stage} has changed nothing"
    told = {k: round(v, 6) for k, v in model.task.compared(after, before).items() if v is not None}
    return told | {"bytes": stored_bytes(model) / stored_bytes(case.dense)}


def near(figure: str, found: float, before: float) -> bool:
    if figure == "bytes":
        return found == pytest.approx(before, rel=BYTES)
    if figure in ("agreement", "neighbours"):
        return abs(found - before) <= AGREEMENT
    lost, was = (1 - v if figure.startswith("cosine") else v for v in (found, before))
    return abs(lost - was) <= KL * abs(was) + STEADY


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as the command line has it
@pytest.mark.parametrize("name", CASES)
def test_figures_are_those_of_before(name: str, make_context: Callable[..., Context]) -> None:
    make, stages = CASES[name]
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if name not in known and not WRITES:
        pytest.skip(f"{name}: not in {FIGURES.name} yet; VITCOMPRESS_GOLDEN=write measures it")
    case = make()
    context = make_context(
        dense=case.dense, calibration=case.calibration, preprocess=case.dense.preprocess
    )
    found = {stage: measured(case, stage, context) for stage in stages}
    if WRITES:
        text = json.dumps(known | {name: found}, indent=1, sort_keys=True)
        FIGURES.write_text(text + "\n")
        return
    before = known[name]
    assert found.keys() == before.keys()
    away = {
        f"{stage} {figure}": (value, before[stage][figure])
        for stage, figures in found.items()
        for figure, value in figures.items()
        if not near(figure, value, before[stage][figure])
    }
    assert not away, f"found, before: {away}"
