"""All that a user can be refused for, as they meet it: exit code 2, one line, nothing written."""

import io
import json
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from vitcompress.cli import app

NAME = "vit_tiny_patch16_224"
SIZES = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
SMALL = [f"--set=model.options.{key}={value}" for key, value in SIZES.items()]
SMALL += [f"--set=model.name={NAME}"]
GLYPHS = "example:glyphs"
RECIPE = f"""
model: {{checkpoint: x.pth, name: {NAME}, options: {json.dumps(SIZES)}}}
data: {{calibration: i.npz, evaluation: i.npz, images: 40}}
stages:
  - {{name: quant, type: quantize, layers: ["blocks.0.*"]}}
"""
PLAIN = {"quant": torch.ones(2, 2)}


class Custom:
    """What no reader knows."""


class Row(NamedTuple):
    """`make`: what they bring, in an empty folder → arguments. `words`: those of the line."""

    make: Callable[[Path], list[Any]]
    words: tuple[str, ...]


def state(**options: Any) -> dict[str, Tensor]:
    model = timm.create_model(NAME, **{"img_size": 32, "num_classes": 3, **SIZES, **options})
    found: dict[str, Tensor] = model.state_dict()
    return found


def checkpoint(content: Callable[[], Any], file: str = "x.pth", *more: str) -> Callable[..., Any]:
    """`inspect` of a file with such content."""

    def make(home: Path) -> list[Any]:
        torch.save(content(), home / file)
        return ["inspect", home / file, *SMALL, *more]

    return make


def folder(config: dict[str, Any], tensors: dict[str, Tensor]) -> Callable[..., Any]:
    """`inspect` of a folder as transformers writes it."""

    def make(home: Path) -> list[Any]:
        (home / "config.json").write_text(json.dumps(config))
        save_file(tensors, home / "model.safetensors")
        return ["inspect", home]

    return make


def named(name: str, content: bytes = b"none", *command: Any) -> Callable[..., Any]:
    """`plan` with a file of this name as its checkpoint, or the `command` with it."""

    def make(home: Path) -> list[Any]:
        (home / name).write_bytes(content)
        return [*(command or ("plan", "vit-int8")), home / name]

    return make


def run(*arguments: Any, recipe: str = RECIPE) -> Callable[..., Any]:
    """`run` of a recipe that is right but for the `arguments`, in which HOME is the folder."""

    def make(home: Path) -> list[Any]:
        (home / "r.yaml").write_text(recipe)
        torch.save(state(), home / "x.pth")
        images = np.zeros((50, 8, 8, 3), np.uint8)
        np.savez(home / "i.npz", images=images, labels=np.arange(50) % 3)
        given = [str(each).replace("HOME", str(home)) for each in arguments]
        return ["run", home / "r.yaml", "--out", home / "out", *given]

    return make


def after(prepare: Callable[[Path], object], make: Callable[..., Any]) -> Callable[..., Any]:
    """`make` where something lies in the folder already."""

    def both(home: Path) -> list[Any]:
        prepare(home)
        arguments: list[Any] = make(home)
        return arguments

    return both


def held(home: Path) -> dict[Path, bytes | None]:
    """What lies in the folder, at any depth."""
    return {path: path.read_bytes() if path.is_file() else None for path in home.rglob("*")}


def pictures(home: Path, *classes: str) -> None:
    for name in classes:
        (home / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(home / "images" / name / "1.png")


def shard(home: Path, label: str) -> None:
    image = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image, "PNG")
    with tarfile.open(home / "images.tar", "w") as tar:
        for name, content in (("1.png", image.getvalue()), ("1.cls", label.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def truncated(home: Path) -> list[Any]:
    save_file(state(), home / "x.safetensors")
    whole = (home / "x.safetensors").read_bytes()
    (home / "x.safetensors").write_bytes(whole[: len(whole) // 2])
    return ["inspect", home / "x.safetensors"]


def scripted(home: Path) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and there are files of it
        torch.jit.script(nn.Linear(2, 2)).save(home / "x.pt")
    return ["inspect", home / "x.pt"]


def two_files(home: Path) -> list[Any]:
    for name in ("a.pth", "b.pth"):
        torch.save(PLAIN, home / name)
    return ["inspect", home]


def other_channels(home: Path) -> list[Any]:
    torch.save(state(in_chans=4), home / "x.pth")
    pictures(home, "a")
    statistics = ["--set=data.mean=[0,0,0,0]", "--set=data.std=[1,1,1,1]"]
    given = ["--evaluation", home / "images", "--set=task=regression"]
    return ["export", home / "x.pth", *SMALL, *statistics, *given, "--out", home / "out"]


LORA = {"blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 16)}
NAFLEX = {
    "vision_model.embeddings.patch_embedding.weight": torch.ones(8, 12),
    "vision_model.embeddings.patch_embedding.bias": torch.ones(8),
}
BERT = {"bert.embeddings.word_embeddings.weight": torch.ones(9, 8)}
MLP_HEAD = {"head.0.weight": torch.ones(8, 16), "head.0.bias": torch.ones(8)}
MLP_HEAD |= {"head.2.weight": torch.ones(3, 8), "head.2.bias": torch.ones(3)}

CHECKPOINTS: dict[str, Row] = {
    "a pickled class": Row(checkpoint(Custom), ("x.pth", "re-save only the state dict")),
    "a pickled module": Row(
        checkpoint(lambda: {"model": nn.Linear(2, 2)}), ("x.pth", "re-save only the state dict")
    ),
    "a TorchScript": Row(scripted, ("x.pt: ", "re-save only the state dict")),
    "no tensors": Row(
        checkpoint(lambda: {"epoch": 3}), ("x.pth", "holds no state dict (keys: epoch)")
    ),
    "codes of a quantized model": Row(
        checkpoint(lambda: {"head.weight": torch.ones(2, 2, dtype=torch.int8)}),
        ("x.pth: head.weight", "int8", "give the checkpoint in floating point"),
    ),
    "keys that are unknown": Row(
        checkpoint(lambda: state() | {"adapter.weight": torch.ones(2, 2)}),
        ("x.pth", "1 unexpected (adapter.weight [2, 2])", "model.name"),
    ),
    "keys that are missing": Row(
        checkpoint(lambda: {k: v for k, v in state().items() if "mlp.fc2" not in k}),
        ("x.pth", "2 missing (blocks.0.mlp.fc2.weight", "model.name"),
    ),
    "weights that are NaN": Row(
        checkpoint(lambda: state() | {"norm.bias": torch.full((16,), torch.nan)}),
        ("x.pth: norm.bias holds NaN", "give an intact checkpoint"),
    ),
    "an adapter with one factor": Row(
        checkpoint(lambda: state() | LORA), ("x.pth: blocks.0.attn.qkv", "merge_and_unload()")
    ),
    "an adapter alone": Row(
        checkpoint(lambda: LORA), ("x.pth", "without the model itself", "merge_and_unload()")
    ),
    "student and teacher": Row(
        checkpoint(lambda: {"teacher": state(), "student": state()}),
        (
            "x.pth: holds several models: teacher, student",
            "--set model.key=teacher (of DINO and the like, the one that is used)",
        ),
    ),
    "two models": Row(
        checkpoint(lambda: {"a": state(), "b": state()}), ("several models: a, b", "model.key=b")
    ),
    "a key of nothing": Row(
        checkpoint(lambda: {"a": state(), "b": state()}, "x.pth", "--set=model.key=c"),
        ("model.key 'c' is nothing that holds tensors; there are a, b",),
    ),
    "a head whose activation is not told": Row(
        checkpoint(lambda: {k: v for k, v in state().items() if "head" not in k} | MLP_HEAD),
        ("x.pth", "before layer 2", "--set model.head.activation=gelu"),
    ),
    "an activation of no such head": Row(
        checkpoint(state, "x.pth", "--set=model.head.activation=gelu"),
        ("x.pth: model.head.activation", "leave it out"),
    ),
    "another number of classes": Row(
        checkpoint(state, "x.pth", "--set=model.num_classes=7"),
        ("x.pth: the checkpoint has 3 classes, the recipe says 7", "model.num_classes"),
    ),
    "a name that timm does not know": Row(
        checkpoint(state, "x.pth", "--model", "vit_tiny_patch16_22"),
        ("x.pth", "did you mean vit_tiny_patch16_224", "model.name"),
    ),
    "a name that cannot be told": Row(
        lambda home: checkpoint(state)(home)[:2], ("x.pth: its tensors fit no", "--model NAME")
    ),
    "an option of no model": Row(
        checkpoint(state, "x.pth", "--set=model.options.pretrained_cfg_overlay=1"),
        ("model.options", "pretrained_cfg_overlay is no option that a model may be made with"),
    ),
    "images of half a patch": Row(
        checkpoint(state, "x.pth", "--set=data.input_size=36"),
        ("data.input_size: 36×36 is not made of whole patches", "give 32×32"),
    ),
    "a task that it cannot have": Row(
        checkpoint(state, "x.pth", "--set=task=one_logit"),
        ("task: one_logit needs a head of one output", "give classification or"),
    ),
    "no name of a file": Row(lambda _: ["inspect", ""], ("must not be empty",)),
    "a file that is not there": Row(
        lambda home: ["inspect", home / "gone.pth"], ("gone.pth", "no such file")
    ),
    "an empty folder": Row(
        lambda home: ["inspect", home], ("model.safetensors", "give a checkpoint file")
    ),
    "two files in a folder": Row(two_files, ("several checkpoints (a.pth, b.pth); give one",)),
    "a shard of several": Row(
        named("model-00001-of-00002.safetensors"), ("one shard of several; give the folder",)
    ),
    "a file that is cut off": Row(truncated, ("x.safetensors: truncated", "download it again")),
    "a file of llama.cpp": Row(named("x.gguf"), ("x.gguf: not a known kind", ".safetensors")),
    "an ONNX file": Row(named("x.onnx"), ("x.onnx: not a known kind", ".safetensors")),
    "a damaged ONNX file": Row(
        named("x.onnx", b"\x08\x0a", "inspect"), ("x.onnx: damaged, or not an ONNX file",)
    ),
    "a config.json that is none": Row(
        after(
            lambda home: torch.save(PLAIN, home / "x.pth"), named("config.json", b"{", "inspect")
        ),
        ("config.json: not a known kind of checkpoint",),
    ),
    "a model of texts": Row(
        folder({"model_type": "bert"}, BERT),
        ("model_type 'bert' of its config.json: none of its tensors reads images", "give a model"),
    ),
    "a SigLIP 2 for any shape": Row(
        folder({"model_type": "siglip2"}, NAFLEX), ("NaFlex", "give one of a fixed resolution")
    ),
}
RUNS: dict[str, Row] = {
    "no recipe": Row(lambda _: ["run", "vit-int9"], ("vit-int9", "did you mean vit-int8")),
    "an empty recipe": Row(run(recipe=""), ("r.yaml: the recipe is empty", "stages")),
    "an unknown key of a stage": Row(
        run(recipe=RECIPE.replace("layers", "layer")),
        ("r.yaml:5: stages.quant.layer: unknown key; did you mean layers?",),
    ),
    "a key that has another name now": Row(
        run(recipe=RECIPE.replace("layers", "fine: true, layers")),
        ("r.yaml:5: stages.quant: fine is called residual now; write that",),
    ),
    "a stage that is not there": Row(
        run("--set", "stages.quantize.bits=8"), ("stages.quantize", "quant")
    ),
    "an unknown type of stage": Row(
        run(recipe=RECIPE.replace("quantize", "quantise")),
        ("r.yaml:5", "unknown type; did you mean quantize?"),
    ),
    "layers that match none": Row(
        run("--set", 'stages.quant.layers=["block.*"]'), ("stages.quant.layers", "blocks.")
    ),
    "a gate of another task": Row(
        run("--set", "gates.min.cosine=0.9", "--set", "data.evaluation=null"),
        ("gates.min.cosine: the task classification has no cosine", "agreement"),
    ),
    "a device that is not there": Row(
        run("--device", "nonsense"), ("--device nonsense: not to be had here; use cpu",)
    ),
    "a device that computes nothing": Row(
        run("--device", "meta"), ("--device meta: not to be had here; use cpu",)
    ),
    "images that are not there": Row(
        run("--calibration", "HOME/gone"), ("gone: no such file or folder",)
    ),
    "a folder without images": Row(
        after(lambda home: (home / "empty").mkdir(), run("--calibration", "HOME/empty")),
        ("no images found in", "empty"),
    ),
    "a file that holds no images": Row(
        after(lambda home: (home / "x.csv").touch(), run("--calibration", "HOME/x.csv")),
        ("x.csv: images come from a folder, a .tar or a .npz",),
    ),
    "classes of another model": Row(
        after(lambda home: pictures(home, "a", "b"), run("--evaluation", "HOME/images")),
        ("images: its labels name 2 classes and the model has 3", "--classes FILE"),
    ),
    "a class that the list lacks": Row(
        after(
            lambda home: [pictures(home, "a", "b"), (home / "c.txt").write_text("a\nc\n")],
            run("--evaluation", "HOME/images", "--classes", "HOME/c.txt"),
        ),
        ("images: class b is not named in", "c.txt; add it there"),
    ),
    "a list of classes that is not there": Row(
        run("--classes", "HOME/gone.txt"), ("gone.txt: no such file", "one folder name a line")
    ),
    "a label of −1": Row(
        after(lambda home: shard(home, "-1"), run("--evaluation", "HOME/images.tar")),
        ("images.tar: has the label -1, which is no class", "from 0"),
    ),
    "a label of no class": Row(
        after(lambda home: shard(home, "99"), run("--evaluation", "HOME/images.tar")),
        ("images.tar: has the label 99 and the model 3 classes",),
    ),
    "images of other channels": Row(other_channels, ("images", "3 channel(s), and the model 4")),
    "statistics of other channels": Row(
        checkpoint(lambda: state(in_chans=4)), ("data.mean", "4 number(s) each")
    ),
    "a classifier of no embedding": Row(
        after(
            lambda home: np.save(home / "c.npy", np.ones((2, 2), np.float32)),
            run("--set", "data.classifier=HOME/c.npy"),
        ),
        ("data.classifier: is for embeddings", "task: embedding"),
    ),
    "a place below a file": Row(
        after(lambda home: (home / "file").touch(), run("--out", "HOME/file/out")),
        ("--out", "file/out: cannot be written to"),
    ),
    "a place with something else in it": Row(
        after(
            lambda home: [(home / "mine").mkdir(), (home / "mine" / "thesis.tex").touch()],
            run("--out", "HOME/mine"),
        ),
        ("--out", "mine: exists and is no output of vitcompress; give another place"),
    ),
}
LOOKING: dict[str, Row] = {
    "a comparison with no run": Row(lambda home: ["compare", home], ("no output folder of a run",)),
    "a report of something else": Row(
        lambda home: [(home / "report.json").write_text("{}"), "compare", home][1:],
        ("report.json: not a report of schema 1",),
    ),
    "a race of what is no ONNX file": Row(
        named("x.onnx", b"no", "bench"), ("x.onnx: onnxruntime cannot load it",)
    ),
    "an evaluation of no ONNX file": Row(
        named("x.onnx", b"", "eval", "--evaluation", f"{GLYPHS}/evaluation"),
        ("x.onnx: damaged, or not an ONNX file",),
    ),
    "a prediction without a model": Row(
        lambda home: ["predict", home, home], ("model.onnx: no such file", "that a run has written")
    ),
    "a prediction for no image": Row(
        lambda home: ["predict", home, home / "x.jpg"], ("x.jpg: no such file or folder",)
    ),
    "an evaluation without labels": Row(
        after(
            lambda home: np.savez(home / "x.npz", images=np.zeros((2, 8, 8, 3), np.uint8)),
            lambda home: ["eval", GLYPHS, "--evaluation", home / "x.npz"],
        ),
        ("x.npz: 000000 has no label", "one folder a class"),
    ),
    "sensitivities for no folder": Row(
        lambda home: ["sensitivity", "vit-int8", GLYPHS, "--out", home / "no" / "x.json"],
        ("--out", "there is no folder", "make it first"),
    ),
    "sensitivities of another kind": Row(
        lambda home: ["sensitivity", "vit-int8", GLYPHS, "--out", home / "x.csv"],
        ("x.csv: name it .json, or .html",),
    ),
}


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=name) for name, row in (CHECKPOINTS | RUNS | LOOKING).items()],
)
def test_it_is_refused_in_one_line(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    arguments = list(map(str, row.make(home)))
    before = held(tmp_path)
    monkeypatch.chdir(home)
    quiet = [] if arguments[0] in ("schema", "recipes", "models") else ["--quiet"]
    result = CliRunner().invoke(app, [*arguments, *quiet])
    assert result.exit_code == 2, (result.stderr, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    assert [words for words in row.words if words not in lines[0]] == [], lines[0]
    assert result.stdout == ""
    assert held(tmp_path) == before
