"""Names of classes, from the folder of a checkpoint to what a run writes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from helpers.cli import Call
from vitcompress.export.folder import load_folder
from vitcompress.export.onnx import metadata
from vitcompress.model.architecture import VitModel

NAMES = ("Zander", "Aal", "Hecht")


@pytest.fixture
def folder(
    make_module: Callable[..., nn.Module], make_vit: Callable[..., VitModel], tmp_path: Path
) -> Path:
    """A folder as timm writes it, of a model for three classes."""
    home = tmp_path / "model"
    home.mkdir()
    save_file(make_module(num_classes=3).state_dict(), home / "model.safetensors")
    described = make_vit(num_classes=3).architecture
    config = {
        "architecture": described.timm,
        "model_args": {k: v for k, v in described.options.items() if k != "num_classes"},
        "label_names": NAMES,
    }
    (home / "config.json").write_text(json.dumps(config))
    return home


def images(home: Path, names: tuple[str, ...]) -> Path:
    random = np.random.default_rng(0)
    for name in names:
        (home / name).mkdir(parents=True)
        for i in range(2):
            drawn = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(drawn).save(home / name / f"{i}.png")
    return home


@pytest.mark.usefixtures("quick_runs")
def test_class_names_reach_all_that_is_written(call: Call, folder: Path, tmp_path: Path) -> None:
    judged, out = images(tmp_path / "images", NAMES), tmp_path / "out"
    told = call("export", folder, "--evaluation", judged, "--out", out).told
    assert "classes are told by the names that the model has for them" in told
    assert json.loads(metadata(out / "model.onnx")["class_names"]) == list(NAMES)
    assert load_folder(out).class_names == NAMES
    reported = json.loads((out / "report.json").read_text())["final"]["top1"]
    for model in (folder, out, out / "model.onnx"):
        assert call("eval", model, "--evaluation", judged, "--json").json["top1"] == reported


def test_a_part_of_the_classes_is_enough_and_other_names_are_put_in_order(
    call: Call, folder: Path, tmp_path: Path
) -> None:
    told = call("eval", folder, "--evaluation", images(tmp_path / "two", NAMES[:2])).told
    assert "classes are told by" in told
    others = images(tmp_path / "others", ("Aal", "Hecht", "Wels"))
    told = call("eval", folder, "--evaluation", others).told
    assert "classes are told by" not in told


def test_names_that_do_not_fit_are_left_out_with_a_word(call: Call, folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    described["label_names"] = NAMES[:2]
    (folder / "config.json").write_text(json.dumps(described))
    told = call("inspect", folder).told
    assert "2 class names for 3 outputs: they are left out" in told


@pytest.mark.usefixtures("quick_runs")
def test_a_list_with_a_name_for_each_output_names_them(
    call: Call, folder: Path, tmp_path: Path
) -> None:
    described = json.loads((folder / "config.json").read_text())
    del described["label_names"]
    (folder / "config.json").write_text(json.dumps(described))
    listed, file, out = ["eel", "pike", "zander"], tmp_path / "classes.txt", tmp_path / "out"
    file.write_text("\n".join(listed))
    judged = images(tmp_path / "images", tuple(listed))
    call("export", folder, "--evaluation", judged, "--classes", file, "--out", out)
    assert json.loads(metadata(out / "model.onnx")["class_names"]) == listed


def test_families_and_layouts_are_listed(call: Call) -> None:
    found = call("models", "--json").json
    assert "Swin" in found["families"]["windowed"]
    assert found["layouts"]["timm"].startswith("timm's own layout")
