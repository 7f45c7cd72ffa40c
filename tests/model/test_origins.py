"""What is known of a checkpoint comes with where it came from."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from helpers.cli import Call
from vitcompress.model.checkpoint import ModelSpec
from vitcompress.model.layouts import Converted, Source
from vitcompress.model.origins import reading

OPTIONS = ("patch_size=8", "embed_dim=64", "depth=2", "num_heads=2")
SPEC = ModelSpec(timm="vit_tiny_patch16_224.augreg_in21k")
TIMM = "timm's default for this name"


def test_inspect_tells_types_and_origins(
    call: Call, make_module: Callable[..., nn.Module], tmp_path: Path
) -> None:
    state = {key: t.half() for key, t in make_module().state_dict().items()}
    state["head.weight"] = state["head.weight"].bfloat16()
    file = tmp_path / "vit_tiny_patch16_224.safetensors"
    save_file(state, file)
    settings = [f"--set=model.options.{option}" for option in OPTIONS]
    given = ("inspect", file, *settings, "--set=data.crop_pct=0.8")
    told = call(*given, "--json").json
    assert told["dtypes"] == {"float16": len(state) - 1, "bfloat16": 1}
    assert told["origins"] == {
        "layout": "no other layout has such names",
        "family": "timm's class VisionTransformer",
        "name": "the name of the file",
        "task": "the number of outputs",
        "input_size": "the shapes of its tensors",
        "mean": TIMM,
        "std": TIMM,
        "crop_pct": "data.crop_pct",
        "interpolation": TIMM,
        "crop_mode": TIMM,
    }
    text = call(*given, "--set=task=multi_label", "--model", file.stem).stderr
    assert "  task: task\n" in text
    assert "  name: model.name\n" in text
    assert "  bfloat16: 1\n" in text


def test_a_folder_says_more_than_its_tensors() -> None:
    config = {"architecture": "vit_tiny_patch16_224"}
    cases = {
        "timm": (config, {}, "config.json", "architecture of config.json"),
        "open_clip": ({"model_cfg": {}}, {}, "open_clip_config.json", "the names of its tensors"),
        "transformers_vit": (
            {"model_type": "vit"},
            {"size": 224},
            "preprocessor_config.json",
            "model_type of config.json: vit",
        ),
        "mae": ({}, {}, "usual for the layout mae", "the names of its tensors"),
    }
    for layout, (described, processor, prepared, why) in cases.items():
        source = Source("x", {}, described, processor)
        converted = Converted(
            "vit_tiny_patch16_224", {}, preprocess={"mean": [0.5]}, task="embedding"
        )
        origins = reading(source, layout, converted, SPEC, {}).origins
        assert (origins["mean"], origins["layout"]) == (prepared, why)
        assert origins["task"] == f"the layout {layout}"
        assert origins["std"] == TIMM
        own = reading(
            source, layout, converted, SPEC, {"data.mean": [1.0], "model.output": "token"}
        )
        assert (own.origins["mean"], own.origins["task"]) == ("data.mean", "model.output")


def test_a_name_comes_from_the_file_or_the_shapes() -> None:
    for place, why in (
        ("a/vit_tiny_patch16_224.pth", "the name of the file"),
        ("a/best.pth", "the shapes of its tensors"),
    ):
        assert (
            reading(Source(place, {}), "timm", Converted(None, {}), SPEC, {}).origins["name"] == why
        )


def test_types_of_eight_bits_are_counted(tmp_path: Path) -> None:
    from vitcompress.model.reading import read_source

    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2, 2).to(torch.float8_e4m3fn), "b": torch.ones(2, 2)}, file)
    assert read_source(file).dtypes == {"float8_e4m3fn": 1, "float32": 1}
