"""Stages, saliencies and tasks that another package adds, installed as such packages are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.cli import EXAMPLE, write_quick_command
from vitcompress import registry
from vitcompress.errors import InputError

FILES = {
    "extra/__init__.py": "",
    "extra/saliency.py": '''
"""Units count by their place."""
import torch
from vitcompress.stages.prune.worth import Saliency

def worth(evidence, site, kind):
    count = evidence.tied_weights(site, kind)[0].shape[0]
    return torch.arange(float(count))

SALIENCY = Saliency(worth)
''',
    "extra/ranking.py": '''
"""Outputs whose order counts."""
import dataclasses
from vitcompress.tasks.regression import TASK as regression

TASK = dataclasses.replace(regression, name="ranking")
''',
    "extra/scale/__init__.py": "",
    "extra/scale/config.py": '''
"""What a recipe says of the scale stage."""
from typing import Literal
from pydantic import BaseModel, ConfigDict

class CONFIG(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["scale"] = "scale"
    name: str = "scale"
    by: float = 2.0
''',
    "extra/scale/stage.py": '''
"""Scale: logits grow."""
from vitcompress.memory import copied
from dataclasses import replace
from vitcompress.stages.stage import Stage, StageResult

def scale(model, config, context):
    return plan(model, config)

def plan(model, config):
    module = copied(model.module)
    for tensor in (module.head.weight, module.head.bias):
        tensor.mul_(config.by)
    return StageResult(replace(model, module=module), {"by": config.by})

STAGE = Stage(scale, plan)
''',
    "extra-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n",
    "extra-1.0.dist-info/entry_points.txt": """
[vitcompress.stages]
scale = extra.scale
[vitcompress.stages.prune.saliencies]
place = extra.saliency
[vitcompress.tasks]
ranking = extra.ranking
""",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is, as pip leaves it."""
    home = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text.lstrip())
    return home


def command(
    installed: Path, *arguments: object, started: tuple[object, ...] = ("-m", "vitcompress")
) -> "subprocess.CompletedProcess[str]":
    paths = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = [sys.executable, *map(str, (*started, *arguments))]
    told = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(given, env=told, capture_output=True, text=True, check=False)


def test_recipes_may_name_what_another_package_adds(installed: Path) -> None:
    told = command(installed, "schema").stdout
    for name in ("scale", "place", "ranking"):
        assert f'"{name}"' in told
    assert json.loads(told)["$defs"]["CONFIG"]["properties"]["by"]["default"] == 2.0


def test_a_stage_of_another_package_runs_in_a_chain(
    installed: Path, shallow_example: Path, tmp_path: Path
) -> None:
    quick = write_quick_command(tmp_path / "bin", shallow_example)
    (recipe := tmp_path / "recipe.yaml").write_text(
        EXAMPLE + "task: ranking\nstages: [{type: scale, name: s, by: 3},"
        "{type: prune, name: p, saliency: place, compensate: false, budget: {macs: 0.9}}]\n"
    )
    given = ("run", recipe, "--out", tmp_path / "out", "--limit", 16, "--json")
    done = command(installed, *given, started=(quick,))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [stage["details"]["facts"].get("by") for stage in report["stages"]] == [3.0, None]
    assert report["model"]["task"] == "ranking"
    assert report["stages"][0]["metrics"]["relative_error"] > 1


def test_a_package_that_cannot_be_loaded_is_named(installed: Path, tmp_path: Path) -> None:
    broken = {"bad-1.0.dist-info/METADATA": FILES["extra-1.0.dist-info/METADATA"]}
    broken["bad-1.0.dist-info/entry_points.txt"] = "[vitcompress.stages]\nworse = gone.package\n"
    for name, text in broken.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = command(tmp_path, "schema")
    assert done.returncode == 2
    assert "error: gone.package: the stage that it adds cannot be loaded" in done.stderr


def test_a_name_is_taken_once(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "twice-1.0.dist-info"
    home.mkdir()
    (home / "METADATA").write_text("Metadata-Version: 2.1\nName: twice\nVersion: 1.0\n")
    (home / "entry_points.txt").write_text("[vitcompress.tasks]\nembedding = extra.ranking\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.added.cache_clear()
    try:
        with pytest.raises(
            InputError, match=r"adds 'embedding' to vitcompress\.tasks, where there"
        ):
            registry.names("vitcompress.tasks")
    finally:
        monkeypatch.undo()
        registry.added.cache_clear()
