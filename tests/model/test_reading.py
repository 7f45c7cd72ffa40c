"""Reading checkpoints of every kind and wrapping, and refusing those that are broken."""

import argparse
import datetime
import re
import types
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.checkpoints import State, assert_same, prefixed, read, refusal, saved


def split(state: State, backbone: str, head: str) -> State:
    return {
        head + key.removeprefix("head.") if key.startswith("head.") else backbone + key: tensor
        for key, tensor in state.items()
    }


def doubled(state: State) -> State:
    return {key: 2 * tensor for key, tensor in state.items()}


WRAPPINGS = {
    "bare": lambda s: s,
    "with a number beside it": lambda s: {**s, "epoch": 3},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "module": lambda s: {"module": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "arguments": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
    "DDP": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "backbone": lambda s: {"state_dict": prefixed(s, "backbone.")},
    "all at once": lambda s: {"state_dict": prefixed(s, "module._orig_mod.model.")},
    "compiled blocks": lambda s: {
        re.sub(r"^(blocks\.\d+)", r"\1._orig_mod", key): v for key, v in s.items()
    },
    "averaged": lambda s: {**prefixed(s, "module."), "n_averaged": torch.tensor(7)},
    "EMA of timm": lambda s: {"state_dict": doubled(s), "state_dict_ema": s},
    "EMA of DeiT": lambda s: {"model": doubled(s), "model_ema": prefixed(s, "module.")},
    "EMA in a module": lambda s: {"model": doubled(s), "ema": {"decay": 0.9, "module": s}},
    "no EMA after all": lambda s: {"state_dict": s, "state_dict_ema": None, "ema": {"decay": 0.9}},
    "EMA state": lambda s: {"net": doubled(s), "ema_state_dict": s},
    "net": lambda s: {"net": s, "acc": 71.2, "epoch": 3},
    "a name of its own": lambda s: {"best_weights_so_far": s},
    "beside statistics": lambda s: {"params": s, "rng_state": torch.ones(9), "mean": torch.ones(3)},
    "beside a loss": lambda s: {"encoder": s, "dino_loss": {"center": torch.ones(1, 64)}},
    "beside an optimizer": lambda s: {
        "weights": s,
        "optimizer": {"state": {"w": {"exp_avg": torch.ones(8, 3, 8, 8)}}},
    },
    "a prefix of its own": lambda s: prefixed(s, "my_vit.body."),
    "the prefix of a layout with other names": lambda s: prefixed(s, "vit."),
    "backbone and head": lambda s: split(s, "backbone.", "head."),
    "encoder and fc": lambda s: split(s, "module.encoder.", "module.fc."),
    "backbone and a head after dropout": lambda s: split(s, "model.backbone.", "model.head.1."),
    "backbone and head apart": lambda s: {
        "backbone": {k: t for k, t in s.items() if not k.startswith("head.")},
        "classifier": {k.removeprefix("head."): t for k, t in s.items() if k.startswith("head.")},
        "epoch": 3,
    },
    "Lightning": lambda s: {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed(s, "net."),
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning with more": lambda s: {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {
            **prefixed(s, "model."),
            **prefixed(doubled(s), "ema_model."),
            "criterion.weight": torch.ones(10),
            "val_acc.correct": torch.tensor(3),
        },
    },
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_every_wrapping_yields_the_same_tensors(wrap: Any, state: State, tmp_path: Path) -> None:
    assert_same(read(saved(wrap(state), tmp_path / "x.ckpt")), state)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".tar", ".PTH"])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_suffix_of_torch(suffix: str, zipped: bool, state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path / f"x{suffix}", _use_new_zipfile_serialization=zipped)
    assert_same(read(path), state)


def test_safetensors(state: State, tmp_path: Path) -> None:
    save_file(prefixed(state, "module."), tmp_path / "x.safetensors")
    assert_same(read(tmp_path / "x.safetensors"), state)


def test_what_is_not_shared_stays_in_sight(state: State, tmp_path: Path) -> None:
    """A second head beside a prefixed backbone must not vanish without a word."""
    content = {**prefixed(state, "backbone."), "classifier.weight": torch.ones(3, 10)}
    assert_same(read(saved(content, tmp_path / "x.pth")), content)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_becomes_float32(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in state.items()}
    path = saved({**stored, "steps": torch.tensor(3)}, tmp_path / "x.pth")
    expected = {key: tensor.float() for key, tensor in stored.items()}
    assert_same(read(path), {**expected, "steps": torch.tensor(3)})


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files(name: str, part: float, state: State, tmp_path: Path) -> None:
    path = tmp_path / name
    (torch.save if name.endswith("pth") else save_file)(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert "truncated" in refusal(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "x.pth")
    (tmp_path / "x.onnx").touch()
    assert ".safetensors" in refusal(tmp_path / "x.onnx")
    assert "neither model.safetensors" in refusal(tmp_path)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    assert "not a torch checkpoint" in refusal(tmp_path / "text.pth")


@pytest.mark.parametrize(
    ("content", "told"),
    [({"epoch": 3, "weights": {}}, "epoch, weights"), (["a"], "a list"), (torch.ones(2), "Tensor")],
)
def test_files_without_a_state_dict(content: Any, told: str, tmp_path: Path) -> None:
    assert told in refusal(saved(content, tmp_path / "x.pth"))


def test_mappings_that_hold_themselves(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    assert "no state dict" in refusal(saved(content, tmp_path / "x.pth"))


PLAIN: dict[str, Any] = {
    "a scalar of numpy": np.float64(0.8),
    "arrays of numpy": [np.arange(3), np.ones((2, 2)), np.array(["a"]), np.array([None])],
    "types of numpy": [np.dtype("float32"), np.float32, np.dtype([("a", "f4")])],
    "a random state": np.random.RandomState(0).get_state(),
    "a path": Path("runs/1"),
    "a path of Windows": PureWindowsPath("C:/runs"),
    "a time": [datetime.datetime.now(datetime.UTC), datetime.date(2024, 1, 1)],
    "a duration": datetime.timedelta(seconds=3),
    "arguments": argparse.Namespace(lr=0.1, out=Path("x"), scores=np.ones(2)),
    "a namespace": types.SimpleNamespace(lr=0.1, nested=types.SimpleNamespace(a=[1])),
    "a defaultdict": defaultdict(list, loss=[1.0, 2.0]),
    "nested defaultdicts": defaultdict(dict, a=defaultdict(int, b=1)),
    "containers": [
        OrderedDict(a=1),
        Counter("aab"),
        deque([1, 2], maxlen=3),
        {1, 2},
        frozenset("a"),
    ],
    "numbers": [1 + 2j, 2**80, Decimal("0.1"), Fraction(1, 3)],
    "types": [int, float, str, dict, list, torch.float16, torch.Size([1]), torch.device("cpu")],
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("beside", PLAIN.values(), ids=PLAIN.keys())
def test_plain_data_beside_the_weights(
    beside: Any, zipped: bool, state: State, tmp_path: Path
) -> None:
    content = {"extra": beside, "state_dict": state, beside.__class__.__name__: beside}
    path = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_same(read(path), state)


def test_a_defaultdict_of_weights(state: State, tmp_path: Path) -> None:
    assert_same(read(saved(defaultdict(dict, model=state), tmp_path / "x.pth")), state)


def test_several_models_are_named_and_the_key_chooses(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "student": prefixed(doubled(state), "module."),
        "teacher": {"net": state},
        "epoch": 1,
    }
    path = saved(content, tmp_path / "x.pth")
    message = refusal(path)
    assert "student, teacher.net" in message
    assert "--set model.key=teacher.net" in message
    assert_same(read(path, "teacher"), state)
    assert_same(read(path, "teacher.net"), state)
    assert_same(read(path, "student"), doubled(state))
    assert "there are student, teacher.net" in refusal(path, "model")
    flat = {**prefixed(state, "teacher."), **prefixed(doubled(state), "student.")}
    save_file(flat, tmp_path / "x.safetensors")
    assert_same(read(tmp_path / "x.safetensors", "teacher"), state)
    capsys.readouterr()
    assert_same(read(tmp_path / "x.safetensors"), doubled(state))
    assert "of student only; left out: teacher" in capsys.readouterr().err.replace("\n", " ")


def test_an_average_of_another_model_is_not_taken_for_it(state: State, tmp_path: Path) -> None:
    other = {key: tensor for key, tensor in state.items() if not key.startswith("blocks.1.")}
    path = saved({"model": state, "teacher_ema": other}, tmp_path / "x.pth")
    assert "model, teacher_ema" in refusal(path)


def test_what_is_not_taken_is_said(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"net": state, "projector": {"weight": torch.ones(4, 64)}}
    assert_same(read(saved(content, tmp_path / "x.pth")), state)
    assert "the model is net; not taken: projector" in capsys.readouterr().err.replace("\n", " ")


def test_names_of_a_layout_keep_their_prefix(tmp_path: Path) -> None:
    names = ("cls_token", "position_embeddings")
    keys = (
        *(f"vit.embeddings.{name}" for name in names),
        "vit.encoder.layer.0.layernorm_before.weight",
        "vit.layernorm.weight",
    )
    content = {f"model.{key}": torch.ones(1, 1, 64) for key in keys}
    assert tuple(read(saved(content, tmp_path / "x.pth"))) == keys


def test_a_head_that_pools(tmp_path: Path) -> None:
    content = {
        "backbone.stages.0.weight": torch.ones(2, 2),
        "backbone.head.norm.weight": torch.ones(2),
    }
    found = read(saved({**content, "fc.weight": torch.ones(3, 2)}, tmp_path / "x.pth"))
    assert found.keys() == {"stages.0.weight", "head.norm.weight", "head.fc.weight"}


def test_a_classifier_of_layers_without_numbers_is_refused(state: State, tmp_path: Path) -> None:
    content = split(state, "backbone.", "classifier.out.") | {
        "classifier.dense.weight": torch.ones(64, 64)
    }
    message = refusal(saved(content, tmp_path / "x.pth"))
    assert "(classifier.dense, classifier.out) is neither one linear layer nor a row" in message


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_floats_of_8_bits(
    dtype: torch.dtype,
    name: str,
    state: State,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in state.items()}
    (torch.save if name.endswith("pth") else save_file)(stored, tmp_path / name)
    assert_same(read(tmp_path / name), {key: tensor.float() for key, tensor in stored.items()})
    assert str(dtype).removeprefix("torch.") in capsys.readouterr().err.replace("\n", "")


WEIGHT = "blocks.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.ones(192, 64, dtype=torch.int8), "is of type int8"),
        (torch.ones(192, 64, dtype=torch.uint8), "is of type uint8"),
        (torch.eye(64).to_sparse(), "is sparse"),
        (torch.ones(1).expand(60_000, 60_000), "expanded"),
        (torch.empty(2, 2, device="meta"), "without values"),
    ],
    ids=["int8", "uint8", "sparse", "expanded", "meta"],
)
def test_tensors_that_are_no_dense_floats(
    tensor: Tensor, told: str, state: State, tmp_path: Path
) -> None:
    message = refusal(saved({**state, WEIGHT: tensor}, tmp_path / "x.pth"))
    assert WEIGHT in message
    assert told in message


def test_another_protocol_of_pickle(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path / "x.pth", pickle_protocol=4)
    assert "protocol" in refusal(path)


def test_a_prefix_without_end(state: State, tmp_path: Path) -> None:
    assert_same(read(saved(prefixed(state, "module." * 3000), tmp_path / "x.pth")), state)
    assert_same(read(saved(prefixed(state, "a.b." * 40), tmp_path / "x.pth")), state)


def test_control_characters_do_not_reach_the_terminal(state: State, tmp_path: Path) -> None:
    content = {**state, "odd\n\x1b[31mname": torch.ones(2)}
    message = refusal(saved(content, tmp_path / "x.pth"))
    assert r"odd\n\x1b[31mname" in message
    assert "\x1b" not in message
    assert "\n" not in refusal(saved({"odd\nname": 3}, tmp_path / "x.pth"))
