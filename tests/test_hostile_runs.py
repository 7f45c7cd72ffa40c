"""Output folders made to reach what lies outside: all commands refuse them, or leave it alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import vitcompress
from helpers.cli import Call
from helpers.pictures import png
from helpers.runs import write_run
from vitcompress.errors import InputError
from vitcompress.export.folder import CONFIG, SAFETENSORS
from vitcompress.model.architecture import VitModel
from vitcompress.output import ONNX
from vitcompress.place import MANIFEST, writing

SECRET = "what nobody is to see"
Spoil = Callable[[Path], object]
Folder = Callable[[Spoil], Path]


@pytest.fixture(scope="module")
def whole(make_vit: Callable[..., VitModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(make_vit(depth=1), tmp_path_factory.mktemp("run") / "out")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Folder:
    """A copy of a run that somebody has changed, beside a secret; nothing else may change."""
    (tmp_path / "secret").write_text(SECRET)

    def changed(spoil: Spoil) -> Path:
        shutil.copytree(whole, tmp_path / "out")
        spoil(tmp_path / "out")
        return tmp_path / "out"

    return changed


def linked(name: str, to: str) -> Spoil:
    def spoil(home: Path) -> None:
        (home / name).unlink()
        (home / name).symlink_to(to)

    return spoil


def described(*place: str | int, value: Any) -> Spoil:
    """With another value in config.json."""

    def spoil(home: Path) -> None:
        held = inner = json.loads((home / CONFIG).read_text())
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        (home / CONFIG).write_text(json.dumps(held))

    return spoil


def header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """With other words on where tensors lie in model.safetensors."""

    def spoil(home: Path) -> None:
        content = (home / SAFETENSORS).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        told = json.loads(content[8:end])
        change(told)
        text = json.dumps(told).encode()
        (home / SAFETENSORS).write_bytes(len(text).to_bytes(8, "little") + text + content[end:])

    return spoil


def weight(told: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = told["head.weight"]
    return found


FOLDERS: dict[str, tuple[Spoil, str]] = {
    "a description elsewhere": (linked(CONFIG, "../secret"), "config.json: "),
    "a description without end": (linked(CONFIG, "/dev/zero"), "no readable config.json"),
    "weights elsewhere": (linked(SAFETENSORS, "../secret"), "model.safetensors: damaged"),
    "weights without end": (linked(SAFETENSORS, "/dev/zero"), "no readable model.safetensors"),
    "a link to itself": (linked(SAFETENSORS, SAFETENSORS), "no readable model.safetensors"),
    "many layers": (described("architecture", "options", "depth", value=10**9), "depth must be"),
    "wide layers": (described("architecture", "options", "embed_dim", value=60_000), "parameters"),
    "huge images": (described("preprocessing", "input_size", value=[10**9] * 2), "preprocessing"),
    "a path for a name": (described("architecture", "timm", value="../../secret"), "config.json"),
    "a module for a task": (described("task", value="os"), "config.json: task"),
    "another format": (described("format", value=10**30), "config.json: format"),
    "tensors out of the file": (
        header(lambda told: weight(told).update(data_offsets=[0, 10**15])),
        "model.safetensors: damaged",
    ),
    "tensors of no end": (
        header(lambda told: weight(told).update(shape=[2**40, 2**40])),
        "model.safetensors: damaged",
    ),
    "a header of no end": (
        lambda home: (home / SAFETENSORS).write_bytes((2**62).to_bytes(8, "little")),
        "model.safetensors: damaged",
    ),
}


@pytest.mark.parametrize(("spoil", "told"), FOLDERS.values(), ids=FOLDERS.keys())
def test_a_folder_that_describes_no_model_is_refused(
    spoil: Spoil, told: str, folder: Folder, call: Call
) -> None:
    home = folder(spoil)
    with pytest.raises(InputError) as error:
        vitcompress.load(home)
    assert told in str(error.value)
    refused = call("inspect", home, code=2).error
    assert str(home) in refused
    assert SECRET not in refused + str(error.value)


def external(location: str, dims: int = 16, **told: int) -> Spoil:
    """With a constant of the ONNX file in another one."""

    def spoil(home: Path) -> None:
        model = onnx.load(home / ONNX)
        moved = next(each for each in model.graph.initializer if each.raw_data)
        moved.ClearField("raw_data")
        moved.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, **told}.items():
            moved.external_data.add(key=key, value=str(value))
        del moved.dims[:]
        moved.dims.append(dims)
        (home / "link").symlink_to("../secret")
        (home / "beside").write_bytes(bytes(1000))
        (home / ONNX).write_bytes(model.SerializeToString())

    return spoil


NETWORKS = {
    "above": external("../secret"),
    "above, in a roundabout way": external("x/../../secret"),
    "anywhere": external("/etc/passwd"),
    "by a link": external("link"),
    "nowhere": external("gone"),
    "behind the end": external("beside", offset=10**15, length=64),
    "longer than the file": external("beside", dims=2**40, length=2**42),
    "before the start": external("beside", offset=-64, length=64),
}


@pytest.mark.parametrize("spoil", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_network_reads_no_other_files(
    spoil: Spoil, folder: Folder, call: Call, tmp_path: Path
) -> None:
    home = folder(spoil)
    (tmp_path / "1.png").write_bytes(png(np.zeros((9, 7, 3), np.uint8)))
    np.savez(tmp_path / "i.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.arange(2))
    for words in (
        ["predict", home, tmp_path / "1.png"],
        ["bench", home, "--seconds", 0],
        ["eval", home, "--evaluation", tmp_path / "i.npz"],
    ):
        refused = call(*words, code=2)
        assert ONNX in refused.error
        assert SECRET not in refused.stderr + refused.stdout


def test_tensors_elsewhere_are_found_at_any_depth(folder: Folder, call: Call) -> None:
    def spoil(home: Path) -> None:
        constant = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
        constant.data_location = onnx.TensorProto.EXTERNAL
        constant.external_data.add(key="location", value="../secret")
        node = onnx.helper.make_node("Constant", [], ["w"], value=constant)
        graph = onnx.helper.make_graph([node], "inner", [], [])
        model = onnx.load(home / ONNX)
        model.graph.node.append(onnx.helper.make_node("If", ["x"], [], then_branch=graph))
        onnx.save(model, home / ONNX)

    refused = call("inspect", folder(spoil) / ONNX, code=2).error
    assert "the tensor w is said to lie in '../secret', which is no file beside it" in refused


def test_what_a_manifest_names_outside_is_left_alone(folder: Folder, tmp_path: Path) -> None:
    names = ["../secret", str(tmp_path / "secret"), "..", "link", "../../etc/passwd"]

    def spoil(home: Path) -> None:
        held = json.loads((home / MANIFEST).read_text())
        held["outputs"] |= dict.fromkeys(names, "0")
        (home / MANIFEST).write_text(json.dumps(held))
        (home / "link").symlink_to("../secret")

    home = folder(spoil)
    vitcompress.load(home)
    with writing(home) as partial:
        (partial / MANIFEST).write_text("{}")
    assert [each.name for each in home.iterdir()] == [
        MANIFEST
    ]  # an earlier output is replaced, its links too
    assert (tmp_path / "secret").read_text() == SECRET
