"""What works on which family of models: family × stage, as a Markdown table.

    python tests/benchmarks/families.py          # what `plan` says, in seconds
    python tests/benchmarks/families.py --run    # every cell run, exported, checked and read again
    python tests/benchmarks/families.py --write  # makes it what `vitcompress models` says

A cell is "yes", or the number of the line that refuses it, below the table. Models are small
and untrained: the table is of what can be carried out, not of what it costs.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from vitcompress import support
from vitcompress.chain import Options
from vitcompress.console import console
from vitcompress.dense import load_dense
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel
from vitcompress.pipeline import run
from vitcompress.recipe import Recipe
from vitcompress.stages.registry import stage_of
from vitcompress.stages.stage import StageResult

_VIT = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "num_classes": 10,
}
_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [3, 6],
    "window_size": 4,
    "num_classes": 10,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT, DeiT": ("vit_tiny_patch16_224", _VIT),
    "DeiT distilled": ("deit_tiny_distilled_patch16_224", _VIT),
    "ViT without class token": (
        "vit_tiny_patch16_224",
        {**_VIT, "class_token": False, "global_pool": "avg"},
    ),
    "DINOv2 with registers, no head": (
        "vit_small_patch14_reg4_dinov2",
        {**_VIT, "num_classes": 0},
    ),
    "SigLIP image tower (attention pooling)": (
        "vit_base_patch16_siglip_224",
        {**_VIT, "num_classes": 0},
    ),
    "EVA-02": ("eva02_tiny_patch14_224", _VIT),
    "DINOv3, no head": ("vit_small_patch16_dinov3", {**_VIT, "num_classes": 0}),
    "EVA-02 enormous (norms after)": ("eva02_enormous_patch14_clip_224", {**_VIT, "mlp_ratio": 4}),
    "BEiT": ("beit_base_patch16_224", _VIT),
    "Swin": ("swin_tiny_patch4_window7_224", _SWIN),
    "Swin V2": ("swinv2_tiny_window8_256", _SWIN),
    "ConvNeXt (generic)": (
        "convnext_atto",
        {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "conv_mlp": False, "num_classes": 10},
    ),
}
STAGES: dict[str, dict[str, Any]] = {
    "tail": {"type": "tail"},
    "prune": {"type": "prune", "budget": {"params": 0.9}, "multiple": 2},
    "prune `embedding`": {
        "type": "prune",
        "budget": {"params": 0.9},
        "structures": ["embedding", "hidden"],
        "multiple": 2,
    },
    "merge": {"type": "merge", "budget": {"macs": 0.85}, "images": 16},
    "sparsify 2:4": {"type": "sparsify", "layers": ["blocks"], "permute": False},
    "quantize 8 bits": {"type": "quantize", "layers": ["stem", "blocks", "head"]},
    "quantize 5 bits": {
        "type": "quantize",
        "layers": ["stem", "blocks", "head"],
        "bits": {"average": 5, "widths": [4, 5, 6, 8]},
    },
    "recover `affine`": {"type": "recover", "method": "affine"},
}

Outcome = Callable[[Recipe, VitModel], StageResult]


def checkpoint(name: str, options: dict[str, Any], folder: Path) -> Path:
    """An untrained model of timm whose parameters leave nothing at zero, as a file."""
    module = timm.create_model(name, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data.copy_(noise * scale + (0 if parameter.ndim > 1 else parameter.data))
    file = folder / f"{name}.safetensors"
    save_file({key: t.contiguous() for key, t in module.state_dict().items()}, file)
    return file


def images(folder: Path) -> Path:
    file = folder / "images.npz"
    if not file.exists():
        drawn = np.random.default_rng(0).integers(0, 255, (48, 32, 32, 3))
        np.savez(file, images=drawn.astype(np.uint8))
    return file


def recipe_of(file: Path, name: str, options: dict[str, Any], stage: str) -> Recipe:
    data = {"calibration": str(images(file.parent)), "images": 32, "input_size": 32}
    model = {"checkpoint": str(file), "name": name, "options": options}
    return Recipe.model_validate({"model": model, "data": data, "stages": [STAGES[stage]]})


def planned(recipe: Recipe, model: VitModel) -> StageResult:
    (config,) = recipe.stages
    return stage_of(config).plan(model, config)


def carried_out(recipe: Recipe, model: VitModel) -> StageResult:
    """Run, export and check `recipe`, and read the output in a new process."""
    result = planned(recipe, model)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        report = run(recipe, out, Options())
        assert report.artifacts[0].parity["passed"]
        code = "import sys, vitcompress; vitcompress.load(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(out)], check=True)
    return result


def supported(model: str, outcome: Outcome, folder: Path) -> support.Support:
    """What works on one of the `MODELS`."""
    name, options = MODELS[model]
    file = checkpoint(name, options, folder)
    loaded, stages = load_dense(recipe_of(file, name, options, "tail")), dict[str, str | None]()
    for stage in STAGES:
        try:
            skipped = outcome(recipe_of(file, name, options, stage), loaded).facts.get("skipped")
        except InputError as error:
            stages[stage] = str(error).partition(": ")[2]
        else:
            stages[stage] = None if skipped is None else f"skipped: {skipped}"
    return support.Support(model=model, family=loaded.anatomy.family, stages=stages)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", action="store_true", help="run every cell, not only its plan")
    parser.add_argument("--write", action="store_true", help="write the table into the package")
    given = parser.parse_args()
    console.quiet = True
    with tempfile.TemporaryDirectory() as place:
        tried = carried_out if given.run else planned
        rows = [supported(model, tried, Path(place)) for model in MODELS]
    if given.write:
        support.write(rows)
    print(support.markdown(rows))  # noqa: T201
