"""Reading checkpoints of every wrapping, and refusing those that are unsafe, broken or misfit."""

import argparse
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from vitcompress.errors import InputError
from vitcompress.export.folder import load_folder, save_folder
from vitcompress.model.architecture import VitModel, from_source
from vitcompress.model.checkpoint import (
    ModelSpec,
    load_model,
    pretrained_cfg,
    pretrained_model,
)
from vitcompress.model.layouts import Converted, convert
from vitcompress.model.options import check_options
from vitcompress.model.reading import read_source, read_state_dict

ASSETS = Path(__file__).parents[3] / "shared" / "assets" / "checkpoints"
NAME = "vit_tiny_patch16_224"
SMALL = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
State = dict[str, Tensor]


def make(name: str = NAME, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": 32, "num_classes": 10, **SMALL, **options}
    model: nn.Module = timm.create_model(name, **options).eval()
    return model


@pytest.fixture(scope="module")
def state() -> State:
    return make().state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def doubled(state: State) -> State:
    return {key: 2 * tensor for key, tensor in state.items()}


def assert_same(read: State, state: State) -> None:
    assert read.keys() == state.keys()
    for key, tensor in state.items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor), key


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refusal(path: Path) -> str:
    """The one line that reading `path` is refused with; it names the file."""
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def misfit(state: State, name: str = NAME, **arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_model(Converted(name, state), **{"options": SMALL, "source": "x.pth", **arguments})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("x.pth: ")
    return message


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
    assert_same(read_state_dict(saved(wrap(state), tmp_path / "x.ckpt")), state)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".PTH"])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_suffix_of_torch(suffix: str, zipped: bool, state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path / f"x{suffix}", _use_new_zipfile_serialization=zipped)
    assert_same(read_state_dict(path), state)


def test_safetensors(state: State, tmp_path: Path) -> None:
    save_file(prefixed(state, "module."), tmp_path / "x.safetensors")
    assert_same(read_state_dict(tmp_path / "x.safetensors"), state)


def test_what_is_not_shared_stays_in_sight(state: State, tmp_path: Path) -> None:
    """A second head beside a prefixed backbone must not vanish without a word."""
    content = {**prefixed(state, "backbone."), "classifier.weight": torch.ones(3, 10)}
    assert_same(read_state_dict(saved(content, tmp_path / "x.pth")), content)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_becomes_float32(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in state.items()}
    path = saved({**stored, "steps": torch.tensor(3)}, tmp_path / "x.pth")
    expected = {key: tensor.float() for key, tensor in stored.items()}
    assert_same(read_state_dict(path), {**expected, "steps": torch.tensor(3)})


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


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    assert "VisionTransformer" in refusal(saved(make(), tmp_path / "x.pth"))


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 7, "in_chans": 1},
        {"img_size": 48},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
        {"global_pool": "map", "class_token": False, "qk_norm": True, "init_values": 1e-5},
        {"no_embed_class": True, "reg_tokens": 4, "pre_norm": True},
        {"name": "deit_tiny_distilled_patch16_224", "num_classes": 5},
    ],
    ids=str,
)
def test_the_checkpoint_decides_classes_channels_and_size(options: dict[str, Any]) -> None:
    name = options.pop("name", NAME)
    trained = make(name, **options)
    seen = ("num_classes", "in_chans", "img_size")
    unseen = SMALL | {key: value for key, value in options.items() if key not in seen}
    model, spec = load_model(Converted(name, trained.state_dict()), unseen, source="x.pth")

    spec = ModelSpec.model_validate_json(spec.model_dump_json())
    again = timm.create_model(spec.timm, pretrained=False, **spec.options).eval()
    again.load_state_dict(model.state_dict())
    channels, size = options.get("in_chans", 3), options.get("img_size", 32)
    assert pretrained_cfg(spec)["input_size"] == [channels, size, size]
    images = torch.rand(2, channels, size, size)
    expected = trained(images)
    assert expected.shape == (2, options.get("num_classes", 10))
    assert torch.equal(model(images), expected)
    assert torch.equal(again(images), expected)
    assert not model.training


def test_defaults_are_not_spelled_out() -> None:
    trained = timm.create_model(NAME, depth=1)
    _, spec = load_model(Converted(NAME, trained.state_dict()), {"depth": 1}, source="x.pth")
    assert spec == ModelSpec(timm=NAME, options={"num_classes": 1000, "in_chans": 3, "depth": 1})


def test_layer_scale_names_of_deit3() -> None:
    trained = make("deit3_small_patch16_224").state_dict()
    old = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in trained.items()}
    assert old.keys() != trained.keys()
    model, _ = load_model(Converted("deit3_small_patch16_224", old), SMALL, source="x.pth")
    assert_same(model.state_dict(), trained)


def test_derived_tensors_are_ignored(state: State) -> None:
    model, _ = load_model(
        Converted(NAME, {**state, "mask_token": torch.ones(1, 64)}), SMALL, source="x.pth"
    )
    assert_same(model.state_dict(), state)


def test_class_counts_that_contradict(state: State) -> None:
    message = misfit(state, num_classes=1000)
    assert "the checkpoint has 10 classes, the recipe says 1000" in message
    assert "model.num_classes" in message
    assert "10 classes" in misfit(state, options={**SMALL, "num_classes": 4})
    load_model(Converted(NAME, state), SMALL, num_classes=10, source="x.pth")


def test_tensors_that_do_not_fit_are_counted_and_named(state: State) -> None:
    broken = {key: value for key, value in state.items() if not key.startswith("blocks.1.attn")}
    broken |= {"extra.weight": torch.ones(2, 3), "norm.weight": torch.ones(65)}
    message = misfit(broken)
    assert "4 missing (blocks.1.attn.qkv.weight [192, 64], " in message
    assert ", …); " in message
    assert "1 unexpected (extra.weight [2, 3]); " in message
    assert "1 of another shape (norm.weight [65] instead of [64]): " in message


def test_nothing_else_is_resampled_or_cast_to_fit(state: State) -> None:
    codes = {**state, "blocks.0.attn.qkv.weight": torch.ones(192, 64, dtype=torch.int8)}
    assert "int8 [192, 64] instead of [192, 64]" in misfit(codes)


def test_layers_that_timm_would_leave_out_are_told(state: State) -> None:
    assert "pre_logits.fc.weight" in misfit({**state, "pre_logits.fc.weight": torch.ones(64, 64)})


def test_a_missing_head_is_told(state: State) -> None:
    headless = {key: value for key, value in state.items() if not key.startswith("head.")}
    assert "2 missing (head.weight [1000, 64], head.bias [1000])" in misfit(headless)


def test_images_that_are_not_square(state: State) -> None:
    wide = make(img_size=(32, 48)).state_dict()
    assert "no square grid" in misfit(wide)
    options = {**SMALL, "img_size": [32, 48]}
    _, spec = load_model(Converted(NAME, wide), options, source="x.pth")
    assert pretrained_cfg(spec)["input_size"] == [3, 32, 48]


def test_weights_that_are_not_finite(state: State) -> None:
    broken = {**state, "norm.weight": torch.full((64,), torch.nan)}
    assert "norm.weight holds NaN" in misfit(broken)


def test_names_and_options_that_timm_does_not_know(state: State) -> None:
    assert "vit_tiny_patch16_224" in misfit(state, "vit_tiny_patch16_225")
    assert "no model" in misfit(state, "hf-hub:someone/vit")
    assert "vit_tiny_patch16_224.augreg" in misfit(state, f"{NAME}.augreg_in22k")
    message = misfit(state, options={"no_such_option": 1})
    assert "no_such_option" in message
    assert "model.options" in message


def test_pretrained_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **_: Any) -> None:
        raise FileNotFoundError("cannot find the requested files\nin the local cache")

    with pytest.raises(InputError, match=r"timm:no_such_vit: timm has no model"):
        pretrained_model("no_such_vit")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        InputError, match=r"timm:vit_tiny_patch16_224: .*local checkpoint"
    ) as caught:
        pretrained_model(NAME)
    assert "\n" not in str(caught.value)


def test_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def published(name: str, **options: Any) -> nn.Module:
        calls.append((name, options))
        return trained.train()

    trained = timm.create_model(NAME, depth=1, num_classes=7)
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", published)
        model, spec = pretrained_model(NAME)
    assert calls == [(NAME, {"pretrained": True})]
    assert model is trained
    assert not model.training
    assert spec == ModelSpec(timm=NAME, options={"num_classes": 7, "in_chans": 3})


def test_pretrained_cfg() -> None:
    facts = pretrained_cfg(ModelSpec(timm="deit_tiny_patch16_224"))
    assert facts == json.loads(json.dumps(facts))
    assert facts["input_size"] == [3, 224, 224]
    assert facts["mean"] == [0.485, 0.456, 0.406]
    assert (facts["crop_pct"], facts["interpolation"]) == (0.9, "bicubic")
    assert pretrained_cfg(ModelSpec(timm=NAME))["std"] == [0.5, 0.5, 0.5]
    assert pretrained_cfg(ModelSpec(timm=NAME, options={"in_chans": 1}))["mean"] is None
    with pytest.raises(InputError, match="no model"):
        pretrained_cfg(ModelSpec(timm="no_such_vit"))


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS.is_dir(), reason=f"real checkpoints are not at {ASSETS}")
@pytest.mark.parametrize(
    ("file", "spec"),
    [
        ("deit_tiny_patch16_224.in1k", {"num_classes": 1000, "in_chans": 3}),
        ("vit_tiny_patch16_224.tinyimagenet200", {"num_classes": 200, "in_chans": 3}),
    ],
)
def test_real_checkpoints(file: str, spec: dict[str, int], tmp_path: Path) -> None:
    path = ASSETS / f"{file}.safetensors"
    state = read_state_dict(path)
    model, found = load_model(Converted(None, state), source=str(path))
    assert found == ModelSpec(timm=file.partition(".")[0], options=spec)
    assert_same(model.state_dict(), state)
    with pytest.raises(InputError, match="deit_tiny_patch16_224, vit_tiny_patch16_224"):
        load_model(Converted(None, state), source=str(tmp_path / "best.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS.is_dir(), reason=f"real checkpoints are not at {ASSETS}")
def test_a_real_swin_by_its_name() -> None:
    state = read_state_dict(ASSETS / "swin_cifar10.safetensors")
    options = json.loads((ASSETS / "swin_cifar10.json").read_text())["arguments"]
    model, _ = load_model(Converted("swin_tiny_patch4_window7_224", state), options, source="swin")
    assert_same(model.state_dict(), state)


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


def test_a_folder_with_infinity_is_refused(vit: VitModel, tmp_path: Path) -> None:
    vit.module.blocks[1].mlp.fc1.bias[0] = float("inf")
    save_folder(vit, tmp_path)
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.fc1\.bias holds NaN or infinity"):
        load_folder(tmp_path)


def test_a_buffer_with_infinity_is_refused() -> None:
    name = "levit_128s"
    options = {"img_size": 64, "embed_dim": (16, 16, 16), "depth": (1, 1, 1)}
    trained = timm.create_model(name, **options).state_dict()
    broken = next(key for key in trained if key.endswith("running_var"))
    trained[broken][0] = float("inf")
    with pytest.raises(InputError, match=f"{re.escape(broken)} holds NaN"):
        load_model(Converted(name, trained), options, source="x.pth")
