"""A ViT as Google's JAX libraries write it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from helpers.layouts import Randomized
from vitcompress.errors import InputError
from vitcompress.model.architecture import from_source

SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 1.5,
}
Arrays = dict[str, np.ndarray]


def linear(layer: Any, out: tuple[int, ...]) -> Arrays:
    """A layer whose outputs have the shape `out`."""
    weight = layer.weight.T.reshape(layer.in_features, *out)
    return {"kernel": weight.numpy(), "bias": layer.bias.reshape(out).numpy()}


def norm(layer: Any) -> Arrays:
    return {"scale": layer.weight.numpy(), "bias": layer.bias.numpy()}


@torch.no_grad()
def arrays_of(model: Any, attention: str, mlp: str, last_norm: str) -> Arrays:
    """The arrays of the encoder; `attention`, `mlp`, `last_norm`: what a block calls its parts."""
    stem = model.patch_embed.proj
    found = {
        "embedding/kernel": stem.weight.permute(2, 3, 1, 0).numpy(),
        "embedding/bias": stem.bias.numpy(),
    }
    parts: dict[str, Arrays] = {"Transformer/encoder_norm": norm(model.norm)}
    for number, block in enumerate(model.blocks):
        name = f"Transformer/encoderblock_{number}"
        heads = block.attn.num_heads
        size = block.attn.head_dim
        qkv = block.attn.qkv
        width = qkv.in_features
        for i, part in enumerate(("query", "key", "value")):
            rows = slice(i * width, (i + 1) * width)
            parts[f"{name}/{attention}/{part}"] = {
                "kernel": qkv.weight[rows].T.reshape(width, heads, size).numpy(),
                "bias": qkv.bias[rows].reshape(heads, size).numpy(),
            }
        kernel = block.attn.proj.weight.T.reshape(heads, size, width).numpy()
        parts[f"{name}/{attention}/out"] = {"kernel": kernel, "bias": block.attn.proj.bias.numpy()}
        parts[f"{name}/LayerNorm_0"] = norm(block.norm1)
        parts[f"{name}/{last_norm}"] = norm(block.norm2)
        for i, layer in enumerate((block.mlp.fc1, block.mlp.fc2)):
            parts[f"{name}/{mlp}/Dense_{i}"] = linear(layer, (layer.out_features,))
    return found | {
        f"{part}/{kind}": array for part, held in parts.items() for kind, array in held.items()
    }


@torch.no_grad()
def of_vit_jax(model: Any) -> Arrays:
    found = arrays_of(model, "MultiHeadDotProductAttention_1", "MlpBlock_3", "LayerNorm_2")
    found |= {f"head/{k}": v for k, v in linear(model.head, (model.head.out_features,)).items()}
    position = model.pos_embed.numpy()
    return found | {
        "cls": model.cls_token.numpy(),
        "Transformer/posembed_input/pos_embedding": position,
    }


def forward(model: Any, pixels: Tensor) -> Tensor:
    output: Tensor = model(pixels)
    return output


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_vit_jax(prefix: str, randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    model = randomized(timm.create_model("vit_base_patch16_224", num_classes=5, **SIZES))
    arrays = {prefix + key: array for key, array in of_vit_jax(model).items()}
    np.savez(tmp_path / "x.npz", **arrays)
    read = agree(model, tmp_path / "x.npz", forward)
    assert read.preprocess.mean == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_big_vision_without_class_token(randomized: Randomized, agree: Any, tmp_path: Path) -> None:
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}
    model = randomized(timm.create_model("vit_base_patch16_224", **options, **SIZES))
    arrays = arrays_of(model, "MultiHeadDotProductAttention_0", "MlpBlock_0", "LayerNorm_1")
    arrays["pos_embedding"] = model.pos_embed.numpy()
    named = {f"params/{key}": array for key, array in arrays.items()}
    np.savez(tmp_path / "x.npz", **named, **{"opt/step": np.ones(1)})
    agree(model, tmp_path / "x.npz", forward)


def test_what_is_no_whole_vit(randomized: Randomized, tmp_path: Path) -> None:
    model = randomized(timm.create_model("vit_base_patch16_224", num_classes=5, **SIZES))
    arrays = of_vit_jax(model)
    half = {key: arrays[key] for key in arrays if "encoderblock_1" not in key or "LayerNorm" in key}
    for changed, told in (
        ({"embedding/kernel": arrays["embedding/kernel"]}, "lacks or misshapes"),
        ({**arrays, "embedding/kernel": np.ones(3, np.float32)}, "lacks or misshapes"),
        (half, "does not fit one"),
        ({**arrays, "adapter/kernel": np.ones(3, np.float32)}, "more or less than one has"),
        ({**arrays, "pre_logits/kernel": np.ones(3, np.float32)}, "representation layer"),
    ):
        np.savez(tmp_path / "x.npz", **changed)
        with pytest.raises(InputError, match=rf"x\.npz: .*{told}") as caught:
            from_source(str(tmp_path / "x.npz"), None, {}, None, {})
        assert "\n" not in str(caught.value)
