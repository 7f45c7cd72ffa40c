"""Reading folders of checkpoints, shards, and arrays of numpy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.checkpoints import NAME, SMALL, State, assert_same, prefixed, read, refusal, saved
from vitcompress.errors import InputError
from vitcompress.model.checkpoint import load_model
from vitcompress.model.layouts import convert
from vitcompress.model.reading import read_source


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_folder(kind: str, state: State, tmp_path: Path) -> None:
    config = {
        "architecture": NAME,
        "pretrained_cfg": {"tag": "augreg_in21k"},
        "model_args": {**SMALL, "num_heads": 4},  # no tensor tells the number of heads
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (save_file if kind.endswith("safetensors") else torch.save)(state, tmp_path / kind)
    source = read_source(tmp_path)
    assert_same(dict(source.tensors), state)
    model, spec = load_model(convert(source), source=str(tmp_path))
    assert spec.timm == f"{NAME}.augreg_in21k"
    assert model.get_submodule("blocks.0.attn").num_heads == 4
    _, spec = load_model(convert(source), {"num_heads": 8}, source=str(tmp_path))
    assert spec.options["num_heads"] == 8


def shards(state: State, folder: Path, suffix: str) -> list[Path]:
    """Write `state` in three shards and their index."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = [f"{stem}-{i:05}-of-00003{suffix}" for i in (1, 2, 3)]
    place = {key: names[i % 3] for i, key in enumerate(state)}
    for name in names:
        part = {key: state[key] for key in state if place[key] == name}
        (save_file if suffix == ".safetensors" else torch.save)(part, folder / name)
    index = {"metadata": {}, "weight_map": place}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    return [folder / name for name in names]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(suffix: str, state: State, tmp_path: Path) -> None:
    files = shards(prefixed(state, "module."), tmp_path, suffix)
    config = {"architecture": NAME, "model_args": SMALL}
    (tmp_path / "config.json").write_text(json.dumps(config))
    index = next(tmp_path.glob("*.index.json"))
    for path in (tmp_path, index):
        source = read_source(path)
        assert_same(dict(source.tensors), state)
        assert source.config == config
    assert "give the folder" in refusal(files[1])
    files[1].unlink()
    with pytest.raises(InputError, match=rf"{files[1].name} is missing; .*the whole folder"):
        read(tmp_path)
    files[2].unlink()
    with pytest.raises(InputError, match=rf"{files[1].name} and 1 more are missing"):
        read(tmp_path)
    index.unlink()
    assert "without their index" in refusal(tmp_path)


def test_a_shard_of_another_model(state: State, tmp_path: Path) -> None:
    files = shards(state, tmp_path, ".safetensors")
    save_file({"other": torch.ones(2)}, files[0])
    with pytest.raises(InputError, match="no shard holds cls_token"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name", ["open_clip_model.safetensors", "model.ckpt", "best.pth", "epoch3.pth.tar"]
)
def test_folders_with_one_file(name: str, state: State, tmp_path: Path) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    torch.save({"lr": 0.1}, tmp_path / "training_args.bin")
    (tmp_path / "log.txt").touch()
    assert_same(read(tmp_path), state)


def test_folders_with_several_files(state: State, tmp_path: Path) -> None:
    for name in ("last.pth", "best.pth"):
        saved(state, tmp_path / name)
    assert "several checkpoints (best.pth, last.pth); give one of them" in refusal(tmp_path)


def test_a_npz(state: State, tmp_path: Path) -> None:
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    half = state["norm.weight"].bfloat16()
    coarse = half.view(torch.int16).numpy().view("V2")  # how JAX has bfloat16 written
    np.savez(tmp_path / "x.npz", **{**arrays, "norm.weight": coarse})
    assert_same(read(tmp_path / "x.npz"), {**state, "norm.weight": half.float()})
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content[: len(content) // 2])
    assert "truncated" in refusal(tmp_path / "x.npz")
