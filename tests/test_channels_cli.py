"""Models of other channels than three, from the command line to the files of a run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from helpers.cli import Call
from vitcompress.model.architecture import VitModel

RECIPE = """
stages:
  - {name: quant, type: quantize, layers: [blocks, head], rounding: nearest}
"""
CHANNELS = (1, 2, 4, 13)


def write_images(root: Path, channels: int, count: int = 12) -> Path:
    """Class folders of files as they are usual for so many channels."""
    draw = np.random.default_rng(channels)
    for place in range(count):
        folder = root / f"{place % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = draw.integers(0, 256, (6, 7, channels), dtype=np.uint8)
        array = coarse.repeat(8, 0).repeat(8, 1)
        file = folder / str(place)
        if channels in (1, 3, 4):
            Image.fromarray(array.squeeze()).save(file.with_suffix(".png"))
        elif channels == 2:
            np.save(file.with_suffix(".npy"), array.transpose(2, 0, 1) / np.float32(255))
        else:
            whole = array.astype(np.uint16) * 257
            tifffile.imwrite(file.with_suffix(".tif"), whole, photometric="minisblack")
    return root


class Given(NamedTuple):
    """What tells of a model at the command line: its checkpoint, and its statistics."""

    checkpoint: tuple[object, ...]
    statistics: tuple[str, ...]


@pytest.fixture
def save(
    make_module: Callable[..., nn.Module], make_vit: Callable[..., VitModel], tmp_path: Path
) -> Callable[[int], Given]:
    """A function that saves a tiny model of so many channels."""

    def save(channels: int) -> Given:
        file = tmp_path / "model.safetensors"
        save_file(make_module(in_chans=channels).state_dict(), file)
        described = make_vit(in_chans=channels).architecture
        options = {k: v for k, v in described.options.items() if k != "in_chans"}
        sets = (f"--set=model.options.{key}={value}" for key, value in options.items())
        return Given(
            (file, "--model", described.timm, *sets),
            tuple(f"--set=data.{key}={[0.5] * channels}" for key in ("mean", "std")),
        )

    return save


@pytest.mark.parametrize(
    "channels",
    [13, *(pytest.param(channels, marks=pytest.mark.slow) for channels in (1, 2, 4))],
)
def test_the_whole_chain(
    channels: int, save: Callable[[int], Given], call: Call, recipe: Path, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", channels)
    checkpoint, statistics = save(channels)
    given = (*checkpoint, *statistics)
    out = tmp_path / "out"
    sets = ("--calibration", images, "--evaluation", images, "--out", out)
    call("run", recipe, *given, *sets)
    report = json.loads((out / "report.json").read_text())
    assert report["model"]["preprocessing"]["channels"] == channels
    assert report["final"]["agreement"] > 50
    facts = call("inspect", out / "model.onnx", "--json").json
    assert facts["inputs"] == {"pixels": f"batch × {channels} × 32 × 32"}
    facts = call("inspect", *given, "--json").json
    assert len(facts["preprocessing"]["mean"]) == channels
    judged = call("eval", out / "model.onnx", "--evaluation", images, "--json").json
    assert judged["top1"] == report["final"]["top1"]
    dense = call("eval", *given, "--evaluation", images, "--json").json
    assert dense["top1"] == report["baseline"]["top1"]
    timed = call("bench", out, "--seconds", 0.1, "--json").json
    assert timed[str(out)]["runs"] > 0


@pytest.mark.parametrize("channels", CHANNELS)
def test_mean_and_std_are_asked_for(
    channels: int, save: Callable[[int], Given], call: Call, recipe: Path
) -> None:
    checkpoint, _ = save(channels)
    for command in (("inspect",), ("run", recipe), ("plan", recipe), ("export",)):
        line = call(*command, *checkpoint, code=2).error
        assert line.startswith("error: data.mean: is not known for a model of")
        assert "data.std" in line
        assert f"{channels} number(s) each" in line


@pytest.mark.parametrize(("of_model", "of_images"), [(13, 3), (3, 13), (4, 3), (1, 13), (2, 1)])
def test_images_of_other_channels_are_refused(
    of_model: int,
    of_images: int,
    save: Callable[[int], Given],
    call: Call,
    recipe: Path,
    tmp_path: Path,
) -> None:
    images = write_images(tmp_path / "images", of_images)
    checkpoint, statistics = save(of_model)
    given = (*checkpoint, *statistics)
    out = tmp_path / "out"
    for done in (
        call("run", recipe, *given, "--calibration", images, "--out", out, code=2),
        call("eval", *given, "--evaluation", images, code=2),
    ):
        told = rf"error: {images}: \d/\d+\.(png|npy|tif): has .* model {of_model}\b"
        assert re.match(told, done.error)
    assert not out.exists()
