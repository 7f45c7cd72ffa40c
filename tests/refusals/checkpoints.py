"""Checkpoints that cannot be read, or fit no model."""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from refusals.making import Row, after, checkpoint, folder, named, state

PLAIN = {"quant": torch.ones(2, 2)}


class Custom:
    """What no reader knows."""


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
