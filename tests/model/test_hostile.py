"""Files that would run code, or have timm run it: nothing of them is executed."""

import datetime
import importlib
import json
import os
import pickle
import struct
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from helpers.checkpoints import NAME, State, read, refusal, saved
from vitcompress.errors import InputError
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.model.architecture import VitModel, from_source
from vitcompress.model.checkpoint import ModelSpec, load_model
from vitcompress.model.layouts import Converted
from vitcompress.model.options import check_options


class Runs:
    """Executes a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


class Custom:
    pass


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(
    zipped: bool, state: State, tmp_path: Path
) -> None:
    trace = tmp_path / "was-run"
    content = {"model": state, "extra": Runs(trace)}
    path = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert f"{os.system.__module__}.system" in message
    assert "torch.save(model.state_dict()" in message
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # it would have run


def test_other_types_in_a_pickle_are_named(state: State, tmp_path: Path) -> None:
    assert "Custom" in refusal(saved({"model": state, "x": Custom()}, tmp_path / "x.pth"))


def test_pickled_modules_are_refused(make_module: Callable[..., nn.Module], tmp_path: Path) -> None:
    for content in (make_module(), {"model": make_module(), "epoch": 3}):
        message = refusal(saved(content, tmp_path / "x.pth"))
        assert "VisionTransformer" in message
        assert "torch.save(model.state_dict()" in message
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    message = refusal(tmp_path / "script.pt")
    assert "TorchScript" in message
    assert "torch.save(model.state_dict()" in message


class Calls:
    """Has `function` called with `arguments`, and attributes set, when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "eval": lambda trace: Calls(eval, f"open({str(trace)!r}, 'w')"),
    "getattr": lambda trace: Calls(getattr, Path, "touch"),
    "a file opened": lambda trace: Calls(open, str(trace), "w"),
    "a partial": lambda trace: partial(os.mkdir, str(trace)),
    "a factory": lambda trace: defaultdict(partial(os.mkdir, str(trace))),
    "a module": lambda trace: Calls(importlib.import_module, "antigravity"),
    "an array of numpy by pickle": lambda trace: Calls(np.load, str(trace), None, True),
    "a method": lambda trace: Path.touch,
    "torch.load": lambda trace: Calls(torch.load, str(trace)),
    "a bound method of plain data": lambda trace: trace.touch,
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_else_is_called(
    make: Callable[[Path], Any], zipped: bool, state: State, tmp_path: Path
) -> None:
    trace = tmp_path / "was-run"
    content = {"model": state, "extra": make(trace)}
    path = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert "could run code" in refusal(path)
    assert not trace.exists()


def test_plain_data_is_never_what_it_says(state: State, tmp_path: Path) -> None:
    """Of what stands beside the weights nothing is made: made up states of it can do no harm."""
    trace = tmp_path / "was-run"
    others = set(torch.serialization.get_safe_globals())
    crafted = Calls(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), {"a": 1}, 8, 1, 0))
    reads = Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=b"no state")
    path_of_two = Calls(type(trace), str(trace), state={"touch": 1})
    for extra in (crafted, reads, path_of_two, Calls(datetime.date, "no", "date")):
        path = saved({"model": state, "extra": extra}, tmp_path / "x.pth")
        assert read(path).keys() == state.keys()
    assert not trace.exists()
    assert set(torch.serialization.get_safe_globals()) == others


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62),
        b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x",
        b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00idtR.",
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_made_up_bytes(content: bytes, tmp_path: Path) -> None:
    for name in ("x.pth", "x.npz", "x.safetensors", "x.tar"):
        (tmp_path / name).write_bytes(content)
        refusal(tmp_path / name)


def test_a_npz_of_pickles_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    np.savez(tmp_path / "x.npz", weight=np.array([Runs(trace)], dtype=object))
    assert "not a .npz of numbers" in refusal(tmp_path / "x.npz")
    assert not trace.exists()


def test_shards_lie_beside_their_index(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "outside.safetensors")
    folder = tmp_path / "hub"
    folder.mkdir()
    for name in (
        "../outside.safetensors",
        str(tmp_path / "outside.safetensors"),
        7,
        "x.index.json",
    ):
        index = {"weight_map": dict.fromkeys(state, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "names no shards beside it" in refusal(folder)


class Touch:
    """A pickle that creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options that make timm read a pickle; it must not have been read in the end."""
    mark, pickled = tmp_path / "mark", tmp_path / "trap.pth"
    pickled.write_bytes(pickle.dumps(Touch(mark)))
    pickle.loads(pickled.read_bytes())
    assert mark.exists()  # it works
    mark.unlink()
    yield {"depth": 1, "checkpoint_path": str(pickled)}
    assert not mark.exists()


def test_a_hostile_hub_folder_is_refused(
    trap: dict[str, Any], state: State, tmp_path: Path
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    config = {"architecture": NAME, "model_args": trap}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"hub: model_args of its config\.json: checkpoint_path"):
        from_source(str(folder), None, {}, None, {})


def test_a_hostile_output_folder_is_refused(
    trap: dict[str, Any], vit: VitModel, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    save_folder(vit, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["options"] = trap
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json: architecture\.options: checkpoint_path"):
        load_folder(folder)


def test_hostile_options_are_refused_wherever_they_come_from(
    trap: dict[str, Any], state: State
) -> None:
    with pytest.raises(InputError, match=r"model\.options: checkpoint_path"):
        load_model(Converted(NAME, state), trap, source="x.pth")
    with pytest.raises(ValidationError, match="checkpoint_path"):
        ModelSpec(timm=NAME, options=trap)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 10**9},
        {"depth": True},
        {"depth": "2"},
        {"embed_dim": -1},
        {"mlp_ratio": float("nan")},
        {"img_size": [[[[[32]]]]]},
        {"norm_layer": "os.system"},
        {"norm_layer": nn.LayerNorm},
        {"pretrained_cfg": {"file": "x.pth"}},
        {"pretrained_cfg_overlay": {"file": "x.pth"}},
        {"pretrained": True},
        {"features_only": True},
        {"block_fn": "x"},
    ],
    ids=str,
)
def test_an_option_out_of_range_or_unknown_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^x: {next(iter(options))} "):
        check_options(options, "x")
