"""Files of others, each kind damaged in many ways: checkpoints, images, lists and ONNX."""

import io
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from helpers.hard import counted, damaged, each, mutated, outcome
from helpers.pictures import png, write_tar
from refusals.making import NAME, SIZES, state
from vitcompress import inspection
from vitcompress.data.images import batches, open_images
from vitcompress.data.labels import read_classes
from vitcompress.data.preprocess import Preprocess
from vitcompress.model.architecture import from_source
from vitcompress.recipe import recipe_without_stages

pytestmark = pytest.mark.filterwarnings("ignore")  # as the command line has it

PREPROCESS = Preprocess(
    input_size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1, interpolation="bilinear"
)
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def checkpoints(home: Path) -> list[Path]:
    """The same weights in each kind of file."""
    held = state()
    torch.save(held, home / "zip.pth")
    torch.save(
        {"state_dict": held, "epoch": 3}, home / "old.pth", _use_new_zipfile_serialization=False
    )
    save_file(held, home / "x.safetensors")
    np.savez(home / "x.npz", **{name: tensor.numpy() for name, tensor in held.items()})
    return sorted(home.iterdir())


@counted(7)
def test_checkpoints(rows: range, tmp_path: Path) -> None:
    whole = {path: path.read_bytes() for path in checkpoints(tmp_path)}

    def case(chance: random.Random) -> None:
        path, content = chance.choice(list(whole.items()))
        near = content[:4000] if chance.random() < 0.5 else content[-4000:]
        changed = content.replace(near, damaged(near, chance), 1)
        path.write_bytes(changed)
        outcome(partial(from_source, str(path), NAME, SIZES, None, {}))
        path.write_bytes(content)

    each(rows, "checkpoints", case)


CONFIGS: list[dict[str, Any]] = [
    {
        "model_type": kind,
        "architectures": ["ViTForImageClassification"],
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "vision_config": {"image_size": 32, "patch_size": 8, "hidden_size": 16},
        "architecture": NAME,
        "num_classes": 3,
        "pretrained_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1], "input_size": [3, 32, 32]},
    }
    for kind in ("vit", "dinov2", "clip", "siglip", "swin", "beit", "deit", "convnext")
]
NAMES = (
    "vit.embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.projection.weight",
    "vision_model.embeddings.patch_embedding.weight",
    "swin.embeddings.patch_embeddings.projection.weight",
    "beit.embeddings.patch_embeddings.projection.weight",
    "visual.conv1.weight",
)


@counted(4)
def test_descriptions(rows: range, tmp_path: Path) -> None:
    def case(chance: random.Random) -> None:
        config = chance.choice(CONFIGS)
        for _ in range(chance.randint(0, 3)):
            config = mutated(config, chance)
        text = json.dumps(config, default=str, skipkeys=True)
        (tmp_path / "config.json").write_text(text, encoding="utf-8", errors="replace")
        tensors = (
            {chance.choice(NAMES): torch.ones(16, 3, 8, 8)} if chance.random() < 0.7 else state()
        )
        save_file(tensors, tmp_path / "model.safetensors")
        outcome(partial(from_source, str(tmp_path), None, {}, None, {}))

    each(rows, "descriptions", case)


def opened(source: Path) -> None:
    images = open_images(source, labelled=True)
    for _ in batches(images, PREPROCESS, 4, max_unreadable=1):
        pass


def written(save: Callable[..., Any], *content: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    save(file, *content, **named)
    return file.getvalue()


@counted(9)
def test_images(rows: range, tmp_path: Path) -> None:
    stack = np.stack([PIXELS] * 3)
    sources = {
        "a.npz": written(np.savez, images=stack, labels=np.arange(3)),
        "b.npz": written(np.savez_compressed, x=stack, y=np.eye(3, dtype=int)),
        "c.tar": write_tar(
            tmp_path / "c.tar",
            {"0.png": png(PIXELS), "0.cls": b"0", "1.png": png(PIXELS), "1.cls": b"1"},
        ).read_bytes(),
    }
    pictures = [png(PIXELS), written(np.save, PIXELS), written(np.savez, PIXELS)]
    home = tmp_path / "folder" / "a"
    home.mkdir(parents=True)
    (home / "0.png").write_bytes(png(PIXELS))

    def case(chance: random.Random) -> None:
        if chance.random() < 0.5:
            name, content = chance.choice(list(sources.items()))
            path = tmp_path / name
            path.write_bytes(damaged(content, chance))
        else:
            path = home.parent
            (home / "1.png").write_bytes(damaged(chance.choice(pictures), chance))
        outcome(partial(opened, path))

    each(rows, "images", case)


LISTS = (
    "ant\nbee\n",
    "0 ant\n1 bee\n",
    "id,name\n0,ant\n1,bee\n",
    '["ant", "bee"]',
    '{"0": ["n1", "ant"]}',
)


@counted(8)
def test_class_lists(rows: range, tmp_path: Path) -> None:
    def case(chance: random.Random) -> None:
        path = tmp_path / chance.choice(["c.txt", "c.json"])
        signs = b'09ab\t\n\r ,"[]{}:#\x00\xff'
        path.write_bytes(damaged(chance.choice(LISTS).encode(), chance, signs))
        outcome(partial(read_classes, path, {"ant", "bee"}))

    each(rows, "classes", case)


def network(chance: random.Random) -> onnx.ModelProto:
    """A file that reads something and says something of itself."""
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
    sizes = ("n", None, 0, 1, 3, 8, 8, 10**6, -1)
    spec = {
        "input_size": [8, 8],
        "channels": 3,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "crop_pct": 1,
        "interpolation": "bicubic",
    }
    kind = chance.choice(kinds)
    shape = (
        ["n", 3, 8, 8] if chance.random() < 0.6 else chance.choices(sizes, k=chance.randint(0, 5))
    )
    ends = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y", "z")]
    reads = [ends[0]] if chance.random() < 0.8 else [ends[0], ends[2]]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", reads, [ends[1]])
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    facts = {
        "preprocessing": spec,
        "task": "classification",
        "class_names": ["a"],
        "target": "onnxruntime",
    }
    told = facts if chance.random() < 0.3 else mutated(facts, chance)
    held = {
        f"vitcompress.{key}": value
        if isinstance(value, str)
        else json.dumps(value, default=str, skipkeys=True)
        for key, value in (told.items() if isinstance(told, dict) else ())
    }
    onnx.helper.set_model_props(
        model, {k: v.encode(errors="replace").decode() for k, v in held.items()}
    )
    return model


@counted(5)
def test_networks(rows: range, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    np.savez(tmp_path / "i.npz", images=np.stack([PIXELS] * 3), labels=np.arange(3))
    given = {"model.checkpoint": str(path), "data.evaluation": str(tmp_path / "i.npz")}

    def case(chance: random.Random) -> None:
        content = network(chance).SerializeToString()
        path.write_bytes(damaged(content, chance) if chance.random() < 0.3 else content)
        outcome(partial(inspection.facts, recipe_without_stages({"model.checkpoint": str(path)})))
        outcome(partial(inspection.evaluate, recipe_without_stages(given), 2))
        outcome(partial(inspection.bench, [str(path)], 1, 0.0, 1))

    each(rows, "networks", case)
