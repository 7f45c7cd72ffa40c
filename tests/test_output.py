"""The place of an output folder: what is replaced there and what is left alone."""

import json
from pathlib import Path

import pytest

from vitcompress.errors import InputError
from vitcompress.output import MANIFEST, writing


def earlier_output(out: Path) -> None:
    out.mkdir()
    (out / "model.onnx").write_text("old")
    manifest = {"versions": {"vitcompress": "0.1"}, "outputs": {"model.onnx": "hash"}}
    (out / MANIFEST).write_text(json.dumps(manifest))


def test_an_earlier_output_is_replaced(tmp_path: Path) -> None:
    earlier_output(tmp_path / "out")
    (tmp_path / "out" / ".DS_Store").touch()
    with writing(tmp_path / "out") as partial:
        (partial / "model.onnx").write_text("new")
    assert [(f.name, f.read_text()) for f in (tmp_path / "out").iterdir()] == [
        ("model.onnx", "new")
    ]
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_what_was_put_beside_an_earlier_output_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    earlier_output(out)
    (out / ".DS_Store").touch()
    (out / "notes.txt").write_text("precious")
    with (
        pytest.raises(InputError, match=r"--out .*/out: holds notes\.txt, .* move it"),
        writing(out),
    ):
        pass
    assert (out / "notes.txt").read_text() == "precious"
    assert (out / "model.onnx").read_text() == "old"


@pytest.mark.parametrize("manifest", ['{"name": "my web app"}', "[]", "no json", '{"versions": 1}'])
def test_a_manifest_of_something_else_is_no_output(manifest: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(InputError, match="is no output of vitcompress"), writing(tmp_path):
        pass
    assert (tmp_path / MANIFEST).read_text() == manifest
