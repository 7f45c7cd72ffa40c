"""Files that no honest program wrote: without end, hollow, or claiming what is not in them."""

import os
import struct
import tarfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from helpers.pictures import png, write_tar
from refusals.making import BLACK, Row, after, checkpoint, folder, named, state

QKV = "blocks.0.attn.qkv.weight"
GLYPHS = ["eval", "example:glyphs", "--evaluation"]
HEADER = b"{'descr':'|u1','fortran_order':False,'shape':(1000000,1000,1000,3)}\n"
ALIASES = "stages: []\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


def pipe(home: Path) -> list[Any]:
    os.mkfifo(home / "x.pth")
    return ["inspect", home / "x.pth"]


def hollow(home: Path) -> list[Any]:
    size = 2 * 10**10
    header = b'{"x":{"dtype":"F16","shape":[%d],"data_offsets":[0,%d]}}' % (size // 2, size)
    with (home / "x.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return ["inspect", home / "x.safetensors"]


def arrays(content: bytes, packing: int = zipfile.ZIP_STORED) -> Any:
    def make(home: Path) -> list[Any]:
        with zipfile.ZipFile(home / "x.npz", "w", packing) as archive:
            archive.writestr("images.npy", content)
        return [*GLYPHS, home / "x.npz"]

    return make


def sparse_tar(home: Path) -> list[Any]:
    with tarfile.open(home / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("0.png")
        parts = {"major": "1", "minor": "0", "realsize": str(2**40), "name": "0.png"}
        member.pax_headers = {f"GNU.sparse.{key}": value for key, value in parts.items()}
        archive.addfile(member)
    return [*GLYPHS, home / "x.tar"]


def strip(home: Path) -> list[Any]:
    write_tar(home / "x.tar", {"1.png": png(np.zeros((20_000, 1, 3), np.uint8)), "1.cls": b"0"})
    return [*GLYPHS, home / "x.tar"]


def network(kind: int, shape: list[Any], *command: str, **facts: str) -> Any:
    def make(home: Path) -> list[Any]:
        ends = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
        opsets = [onnx.helper.make_opsetid("", 17)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.helper.set_model_props(model, {f"vitcompress.{k}": v for k, v in facts.items()})
        onnx.save(model, home / "x.onnx")
        return [*command, home / "x.onnx"]

    return make


def planned(setting: str, _: Path) -> list[Any]:
    return ["plan", "vit-int8", "example:glyphs", "--set", setting]


def misspelt(home: Path) -> list[Any]:
    network(FLOAT, ["n", 3, 8, 8], task="classification")(home)
    content = (home / "x.onnx").read_bytes()
    (home / "x.onnx").write_bytes(content.replace(b"vitcompress.task", b"\xffitcompress.task"))
    return ["inspect", home / "x.onnx"]


def compared(home: Path) -> list[Any]:
    (home / "report.json").write_text('{"model": {}, "baseline": {}, "final": {}}')
    (home / "recipe.yaml").symlink_to("/dev/zero")
    return ["compare", home]


FOUR_BITS = torch.zeros(48, 16, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
FLOAT, INTEGER = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
ENDLESS = "is a device or a pipe and no file"
FOREIGN: dict[str, Row] = {
    "a tag of another type": Row(
        named("x.yaml", b"version: 1\nstages: !!bool abc\n", "plan"),
        ("x.yaml:2: not YAML: 'abc' is no bool",),
    ),
    "a number of 5,000 digits": Row(
        named("x.yaml", b"version: 0x" + b"f" * 5000, "plan"), ("x.yaml:1", "at most 64 bits")
    ),
    "a few anchors for millions of values": Row(
        named("x.yaml", ALIASES.encode(), "plan"), ("x.yaml:1: its anchors stand for too many",)
    ),
    "a recipe without end": Row(lambda _: ["plan", "/dev/zero"], (f"/dev/zero: {ENDLESS}",)),
    "a run with a recipe without end": Row(compared, (f"recipe.yaml: {ENDLESS}",)),
    "a list of classes without end": Row(
        lambda _: [*GLYPHS, "example:glyphs/evaluation", "--classes", "/dev/zero"],
        (f"/dev/zero: {ENDLESS}",),
    ),
    "a recipe as large as a model": Row(
        named("x.yaml", b"#" * 300_000, "plan"), ("x.yaml: has 0 MB, and at most 0.3 are read",)
    ),
    "a pipe for a checkpoint": Row(pipe, (f"x.pth: {ENDLESS}",)),
    "a name that is too long": Row(
        lambda _: ["init", "example:glyphs", "-o", f"{'x' * 5000}.yaml"], ("File name too long",)
    ),
    "a file that was never filled": Row(hollow, ("x.safetensors: most of its 20.0 GB were never",)),
    "a pickle that makes zeros": Row(
        named("x.pth", b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x70\x85R.", "inspect"),
        ("x.pth: holds a pickled builtins.bytearray", "re-save only the state dict"),
    ),
    "a tensor that repeats one value": Row(
        checkpoint(lambda: state() | {QKV: torch.zeros(1).expand(60_000, 60_000)}),
        (f"x.pth: {QKV} is sparse, quantized, expanded",),
    ),
    "a tensor of four bits": Row(
        checkpoint(lambda: state() | {QKV: FOUR_BITS}),
        ("x.pth: holds tensors of a kind that is not read", "save them as dense floats"),
    ),
    "a config.json of brackets": Row(
        after(
            lambda home: (home / "config.json").write_text("[" * 100_000),
            lambda home: [torch.save(state(), home / "pytorch_model.bin"), "inspect", home][1:],
        ),
        ("config.json: not readable as JSON", "mend it"),
    ),
    "a config.json of other types": Row(
        folder({"model_type": ["vit"], "image_size": []}, {"a.weight": torch.ones(8, 3, 4, 4)}),
        ("error: ",),
    ),
    "arrays that are not there": Row(
        arrays(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(HEADER)) + HEADER),
        ("x.npz: not readable as plain arrays", "numpy.savez"),
    ),
    "a text for an array": Row(arrays(b"hello"), ("x.npz: not readable as plain arrays",)),
    "arrays of another packing": Row(
        arrays(b"", zipfile.ZIP_LZMA), ("x.npz", "images.npy is packed by neither")
    ),
    "zeros that unpack without end": Row(
        arrays(bytes(80_000_000), zipfile.ZIP_DEFLATED),
        ("x.npz", "claims to hold 0.1 GB"),
    ),
    "a label of 5,000 digits": Row(
        after(
            lambda home: write_tar(home / "x.tar", {"1.png": BLACK, "1.cls": b"9" * 5000}),
            lambda home: [*GLYPHS, home / "x.tar"],
        ),
        ("x.tar: 1.cls holds more than 200 letters",),
    ),
    "a tar with a map of holes": Row(sparse_tar, ("x.tar: not a readable, uncompressed tar",)),
    "a picture of one column": Row(strip, ("x.tar: at least 1 of 1 images are unreadable",)),
    "a network of integers": Row(
        network(INTEGER, ["n", 3, 8, 8], "bench"), ("x.onnx: reads x [3, 8, 8], and not one image",)
    ),
    "a network of huge images": Row(
        network(FLOAT, ["n", 3, 10**6, 10**6], "bench"), ("x.onnx: reads x", "of a fixed size")
    ),
    "a network of seven images": Row(
        network(FLOAT, [7, 3, 8, 8], "bench"), ("x.onnx: cannot be run on 1 image(s)",)
    ),
    "a network with a name that is no text": Row(
        misspelt, ("x.onnx: damaged, or not an ONNX file (key", "is not UTF-8")
    ),
    "a classifier of pictures": Row(
        network(
            FLOAT,
            ["n", 3, 8, 8],
            *("eval", "--evaluation", "example:glyphs/evaluation"),
            preprocessing='{"input_size": [8, 8], "channels": 3, "mean": [0, 0, 0], '
            '"std": [1, 1, 1], "crop_pct": 1, "interpolation": "bicubic"}',
            task="classification",
        ),
        ("x.onnx: what it says of itself is wrong", "[3, 8, 8] outputs an image"),
    ),
    "a network that says no JSON": Row(
        network(
            FLOAT,
            ["n", 3, 8, 8],
            *("eval", "--evaluation", "example:glyphs/evaluation"),
            preprocessing="{",
            task="classification",
        ),
        ("x.onnx: what it says of itself is wrong", "give the folder of a run"),
    ),
}
NUMBERS = {
    "data.std=[1e-30,1e-30,1e-30]": "must be at least 0.0001",
    "data.mean=[1e30,0,0]": "must be at most 1000000",
    "data.crop_pct=.0001": "must be at least 0.1",
    "stages.quant.group=1000000": "must be at most 1024",
    "model.options.img_size=[]": "img_size must be a whole number",
    "model.options.num_heads=0": "timm cannot build",
    "model.options.depth=1000": "depth must be a whole number up to 128",
    "model.options.embed_dim=65536": "million parameters",
}
FOREIGN |= {setting: Row(partial(planned, setting), (words,)) for setting, words in NUMBERS.items()}
