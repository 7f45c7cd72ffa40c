"""A classifier of some of its classes, from the command line, on the embedded example."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.cli import EXAMPLE, Call
from vitcompress.data.images import open_images
from vitcompress.example.glyphs import CLASSES
from vitcompress.export.folder import load_folder
from vitcompress.export.onnx import metadata

KEPT = ("7", "B", "C", "K", "X")
RECIPE = f"""{EXAMPLE}
classes: ["K", "B", "X", "C", 7]
stages:
  - {{name: quant, type: quantize, layers: ["blocks.0.mlp.*"], rounding: nearest, residual: 0}}
"""


def test_a_model_keeps_some_classes_and_their_images(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = call("run", recipe, "--out", out, "--limit", 32, "--json")
    report = found.json
    assert "images are of the classes to be kept, by their labels" in found.told
    assert report["model"]["classes"] == len(KEPT)
    assert report["final"]["images"] == 32
    assert report["baseline"]["agreement"] == 100
    assert json.loads(metadata(out / "model.onnx")["class_names"]) == list(KEPT)
    model = load_folder(out)
    assert (model.num_classes, model.class_names) == (len(KEPT), KEPT)
    again = call("run", out / "recipe.yaml", "--out", tmp_path / "again", "--limit", 32, "--json")
    assert again.json["final"]["kl"] == report["final"]["kl"]
    checkpoint = "example:glyphs"
    judged = ("--evaluation", "example:glyphs/evaluation", "--limit", 32, "--json")
    kept = f"--set=classes={json.dumps(KEPT)}"
    assert call("eval", checkpoint, *judged, kept).json["top1"] == report["baseline"]["top1"]


def test_images_without_labels_are_chosen_by_what_the_dense_model_answers(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    given = open_images("example:glyphs/calibration", labelled=True, limit=160)
    folder = tmp_path / "flat"
    folder.mkdir()
    for place in range(len(given)):
        Image.fromarray(np.asarray(given.read(place))).save(folder / f"{place}.png")
    (tmp_path / "kept.txt").write_text("B\nX\n\n20\n")
    where = ("--calibration", folder, "--out", tmp_path / "out", "--limit", 8, "--set")
    told = call("run", recipe, *where, "classes=kept.txt", code=2).told
    assert "kept.txt: no such file; write one class to be kept a line" in told
    told = call("run", recipe, *where, f"classes={tmp_path / 'kept.txt'}").told
    assert "8 of " in told
    assert "by the answers of the dense model" in told
    names = load_folder(tmp_path / "out").class_names
    assert names == ("B", CLASSES[20], "X")


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ('["A", "o"]', "classes: o: the model has no class of this name"),
        ('["Zebra", "A"]', "classes: Zebra: the model has no class of this name"),
        ("[3, 33]", "classes: 33: the model has 33 classes, 0 to 32"),
        ('["A", 10]', "classes: name two classes or more"),
        ("[A]", "classes=[A]: has 1 values; the least is 2"),
        ("7", "classes=7: "),
    ],
)
def test_classes_that_are_not_there_are_told_before_the_work(
    classes: str, told: str, call: Call, recipe: Path, tmp_path: Path
) -> None:
    refused = call("run", recipe, "--out", tmp_path / "out", f"--set=classes={classes}", code=2)
    assert told in refused.error
    assert not (tmp_path / "out").exists()


def test_a_model_without_classes_is_refused(call: Call, recipe: Path) -> None:
    told = call("plan", recipe, "--set=model.output=pooled", code=2).error
    assert "classes: the task is embedding" in told
