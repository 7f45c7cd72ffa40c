"""What users have named is text: no command reads markup or codes in it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.cli import EXAMPLE, Call

NAME = "o[/x] [bold]b :smile:"
CLASS = "[bold]b :smile:"  # and a slash would make two folders of it
RECIPE = f"""{EXAMPLE}
stages:
  - {{name: quant, type: quantize, layers: ["blocks.0.mlp.*"], rounding: nearest, residual: 0}}
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / NAME


@pytest.fixture
def home(call: Call, recipe: Path, kept: Path, tmp_path: Path) -> Path:
    """A folder of that name with a run, images of classes with such names, and a recipe."""
    home = tmp_path / NAME
    home.parent.mkdir(parents=True)
    if not kept.exists():
        prepare(kept, recipe)
        done = call("run", kept / "r.yaml", "--out", kept / "run", "--limit", 16)
        assert f"/{NAME}/run" in done.told
    shutil.copytree(kept, home)
    return home


def prepare(home: Path, recipe: Path) -> None:
    images, random = home / "images", np.random.default_rng(0)
    for number in range(33):
        (images / f"{number:02} {CLASS}").mkdir(parents=True)
        picture = Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        picture.save(images / f"{number:02} {CLASS}" / f"[bold]{number}.png")
    shutil.copyfile(recipe, home / "r.yaml")


SEEN: dict[str, Callable[[Path], list[Any]]] = {
    "bench": lambda home: ["bench", home / "run", "--seconds", 0],
    "predict": lambda home: ["predict", home / "run", home / "images" / f"00 {CLASS}"],
    "plan": lambda home: ["plan", home / "r.yaml", "--calibration", home / "images"],
    "compare": lambda home: ["compare", home / "run", "--out", home / "page.html"],
    "sensitivity": lambda home: ["sensitivity", home / "r.yaml", "--out", home / "t.json"],
    "init": lambda home: ["init", "example:glyphs", "--out", home / "new.yaml"],
}
REFUSED: dict[str, Callable[[Path], list[Any]]] = {
    "run": lambda home: ["run", home / "gone.yaml"],
    "export": lambda home: ["export", home / "gone.pth"],
    "search": lambda home: ["search", home / "gone.pth", "--max-kl", 1],
    "eval": lambda home: ["eval", home / "gone", "--evaluation", home / "images"],
    "bench": lambda home: ["bench", home / "gone"],
    "inspect": lambda home: ["inspect", home / "gone"],
    "predict": lambda home: ["predict", home / "run", home / "gone.png"],
    "plan": lambda home: ["plan", home / "gone.yaml"],
    "compare": lambda home: ["compare", home / "gone"],
    "sensitivity": lambda home: ["sensitivity", home / "gone.yaml"],
    "init": lambda home: ["init", home / "gone.pth", "--out", home / "new.yaml"],
    "option": lambda home: ["run", "quickstart", f"--{NAME}"],
    "setting": lambda home: ["run", "quickstart", "--set", f"stages.{NAME}.bits=8"],
}


@pytest.mark.parametrize("command", SEEN)
def test_a_name_is_printed_as_it_is(command: str, call: Call, home: Path) -> None:
    done = (
        call(*SEEN[command](home), "--limit", 16)
        if command == "sensitivity"
        else call(*SEEN[command](home))
    )
    assert any(text in done.told for text in (NAME, CLASS)), done.stderr


@pytest.mark.parametrize("command", REFUSED)
def test_a_name_is_told_as_it_is(command: str, call: Call, tmp_path: Path) -> None:
    (home := tmp_path / NAME).mkdir(parents=True)
    (home / "run").mkdir()
    (home / "images").mkdir()
    assert NAME in call(*REFUSED[command](home), code=2).told
