"""Configs are light, and lead to their stages."""

import subprocess
import sys
from typing import Any, get_args

import pytest

from vitcompress.recipe import Recipe
from vitcompress.stages.registry import StageConfig, stage_of
from vitcompress.stages.stage import Stage

CONFIGS = get_args(get_args(StageConfig)[0])


def test_a_recipe_needs_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, vitcompress.recipe as r; [r.load_recipe(p) for p in "
        "r.packaged_recipes().values()]; r.json_schema(); "
        "assert not {'torch', 'onnxruntime', 'timm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_leads_to_its_stage(config: Any) -> None:
    given = {"type": config.model_fields["type"].default, "budget": {"macs": 0.5}}
    (made,) = Recipe.model_validate(
        {"stages": [{k: v for k, v in given.items() if k in config.model_fields}]}
    ).stages
    assert isinstance(made, config)
    assert isinstance(stage_of(made), Stage)
