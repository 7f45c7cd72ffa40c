"""A first recipe for a checkpoint loads, plans, and says what is so of that model."""

from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from helpers.cli import Call
from vitcompress.recipe import load_recipe, recipe_summary

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [3, 6]}


@pytest.mark.parametrize(
    ("name", "options", "stages", "gates", "refused"),
    [
        (
            "vit_tiny_patch16_224",
            {**VIT, "num_classes": 10},
            ["tail", "quant"],
            {"agreement": 97.0},
            [],
        ),
        (
            "swin_tiny_patch4_window7_224",
            {**SWIN, "window_size": 4, "num_classes": 10},
            ["quant"],
            {"agreement": 97.0},
            ["tail does not apply: ", "merge does not apply: "],
        ),
        (
            "vit_small_patch14_reg4_dinov2",
            {**VIT, "num_classes": 0},
            ["tail", "quant"],
            {"cosine": 0.99},
            [],
        ),
    ],
)
def test_a_first_recipe_for_a_checkpoint(
    name: str,
    options: dict[str, Any],
    stages: list[str],
    gates: dict[str, float],
    refused: list[str],
    call: Call,
    tmp_path: Path,
) -> None:
    file, out = tmp_path / "model.safetensors", tmp_path / "recipe.yaml"
    tensors = timm.create_model(name, **options).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    given = [f"--set=model.options.{key}={value}" for key, value in options.items()]
    call("init", file, "--model", name, *given, "-o", out)

    recipe, text = load_recipe(out), out.read_text()
    assert [stage.name for stage in recipe.stages] == stages
    assert recipe.gates.model_dump(exclude_none=True)["min"] == gates
    assert recipe_summary(text) == f"A first chain of stages for {name}, to be run with its images"
    assert [words for words in refused if f"  # {words}" not in text] == []
    assert text.count("does not apply") == len(refused)
    rows = call("plan", out, "--json").json
    assert rows[-1]["bytes"] < recipe.gates.max_ratio.bytes * rows[0]["bytes"]

    out.write_text(text.replace("  # - {", "  - {"))  # all that is offered
    names = [row["stage"] for row in call("plan", out, "--json").json][1:]
    assert names == [stage.name for stage in load_recipe(out).stages]
    assert len(names) == 6 - len(refused)
