"""`export.target` names the runtime that a file is for."""

from pathlib import Path

import pytest

from helpers.cli import EXAMPLE, Call
from vitcompress import pipeline, targets
from vitcompress.errors import InputError
from vitcompress.recipe import json_schema, load_recipe
from vitcompress.targets import onnxruntime

RECIPE = EXAMPLE + "stages: []\n"


def test_it_is_onnxruntime_where_nothing_is_said(recipe: Path) -> None:
    assert targets.DEFAULT == "onnxruntime"
    assert load_recipe(recipe).export.target == targets.DEFAULT


def test_another_is_refused_with_those_there_are(recipe: Path) -> None:
    with pytest.raises(
        InputError, match=r"export\.target.*must be .onnxruntime., .openvino. or .portable."
    ):
        load_recipe(recipe, ["export.target=toaster"])
    told = json_schema()["$defs"]["ExportSection"]["properties"]["target"]
    assert told["enum"] == ["onnxruntime", "openvino", "portable"]


def test_a_runtime_that_is_too_old_is_told_before_the_work(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime.ort, "__version__", "1.23.2")
    monkeypatch.setattr(pipeline, "load_dense", lambda _: pytest.fail("the model was read"))
    (line,) = call("run", recipe, "--out", tmp_path / "out", code=2).stderr.strip().splitlines()
    assert line.startswith("error: onnxruntime 1.23.2")
    assert "1.24" in line
    assert not (tmp_path / "out").exists()
