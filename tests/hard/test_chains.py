"""Any stages in any order, with any values that their configs take: the plan refuses them in a
line, or they run, what they leave is loaded again as it is, and its ONNX file agrees with it."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from helpers.hard import each, outcome, seeds
from vitcompress import chain, targets
from vitcompress.data.images import ImageSet
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import check_parity
from vitcompress.model.architecture import VitModel
from vitcompress.recipe import Recipe
from vitcompress.stages.context import Context

pytestmark = pytest.mark.filterwarnings("ignore")  # as the command line has it

SECONDS = 120  # that a chain may take

# By stage, values of its keys; the first of each are what most recipes have.
CONFIGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "tail": {},
    "prune": {
        "budget": ({"macs": 0.8}, {"params": 0.7}, {"bytes": 0.9}),
        "structures": (("query_key", "value", "hidden"), ("heads",), ("attention", "hidden")),
        "saliency": ("obs", "hessian", "taylor", "magnitude", "random"),
        "allocate": ("uniform", "measured"),
        "rotate": (True, False),
        "compensate": (True, False),
        "multiple": (4, None, 1),
    },
    "merge": {
        "budget": ({"macs": 0.8}, {"macs": 0.65}),
        "method": ("fisher", "tome", "evit", "mctf", "ppt", "diffrate"),
        "schedule": ("constant", "search"),
        "images": (8,),
        "proportional": (True, False),
    },
    "sparsify": {
        "pattern": ("2:4", "1:4"),
        "layers": (("*mlp*",), ("blocks.*",), ("blocks.0.*",)),
        "criterion": ("obs", "magnitude", "wanda", "taylor"),
        "reconstruct": (True, False),
        "permute": (True, False),
        "storage": ("compact", "dense"),
    },
    "quantize": {
        "bits": (8, 4, 3, {"average": 5}),
        "layers": (("blocks",), ("stem", "blocks", "head"), ("*.fc1",)),
        "score": ("uniform", "lrp", "kl", "fisher"),
        "activations": ("static", "dynamic", "float"),
        "rounding": ("nearest", "gptq", "descent"),
        "sequential": (False, True),
        "group": (None, 16, 24),
        "reparametrise": (True, False),
        "residual": (0, None, 1),
        "rest": ("float32", "float16", "int8"),
    },
    "recover": {
        "method": ("affine", "distill"),
        "steps": (2,),
        "batch": (4,),
    },
}


def drawn(chance: random.Random) -> dict[str, Any]:
    """A recipe of a few stages."""
    stages = []
    for number in range(chance.randint(1, 4)):
        kind = chance.choice(list(CONFIGS))
        keys = {
            key: chance.choice(values)
            for key, values in CONFIGS[kind].items()
            if key in ("budget", "images", "steps", "batch") or chance.random() < 0.5
        }
        if keys.get("method") == "affine":
            keys = {"method": "affine"}
        stages.append({"type": kind, "name": f"{kind}{number}", **keys})
    return {"stages": stages}


@seeds(4, 200)
def test_chains(
    rows: range,
    make_vit: Callable[..., VitModel],
    make_context: Callable[..., Context],
    images: ImageSet,
    pixels: Tensor,
    tmp_path: Path,
) -> None:
    context, dense = make_context(calibration=images.subset(range(16))), make_vit()
    held = context.split(4)
    context = replace(held[0], reserve=held[1].images)
    runtime, home = targets.load_target(targets.DEFAULT), tmp_path / "out"

    def case(chance: random.Random) -> None:
        try:
            recipe = Recipe.model_validate(drawn(chance))
        except ValidationError:  # options of a stage that are at odds
            return
        if outcome(lambda: list(chain.planned(recipe, dense, runtime))) is not None:
            return
        torch.manual_seed(0)
        model = dense
        with torch.no_grad():
            for config in recipe.stages:
                model = chain.carry_out(config, model, context).model
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            save_folder(model, home)
            assert torch.equal(load_folder(home).module(pixels), model.module(pixels))
            export_onnx(model, home / "model.onnx", {})
            check_parity(home / "model.onnx", model, pixels, 1)

    each(rows, "chains", case, SECONDS)
