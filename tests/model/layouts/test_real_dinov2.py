"""Weights in the names of two libraries compress to the same bytes.

At the image size of the training: for others, positions are resampled as each library does it.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import vitcompress

ASSETS = Path(__file__).parents[4] / "shared" / "assets"
WEIGHTS = ASSETS / "checkpoints" / "vit_small_patch14_dinov2.saliency.safetensors"
IMAGES = ASSETS / "imagenet1k" / "calibration"
BLOCKS = 3
NAMES = (
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("blocks.", "encoder.layer."),
    (".attn.proj.", ".attention.o_proj."),
    (".ls1.gamma", ".layer_scale1.lambda1"),
    (".ls2.gamma", ".layer_scale2.lambda1"),
)


def as_transformers(state: dict[str, Tensor]) -> Any:
    """The model of the transformers library that has the weights of timm's `state`."""
    made = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=384,
            num_hidden_layers=BLOCKS,
            num_attention_heads=6,
            patch_size=14,
            image_size=518,
        )
    )
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        for old, new in NAMES:
            key = key.replace(old, new)
        if ".attn.qkv." in key:
            parts = ("q_proj", "k_proj", "v_proj")
            for part, third in zip(parts, value.chunk(3), strict=True):
                renamed[key.replace(".attn.qkv.", f".attention.{part}.")] = third
        else:
            renamed["layernorm" + key[4:] if key.startswith("norm.") else key] = value
    mask = {"embeddings.mask_token": made.embeddings.mask_token.data}
    made.load_state_dict(renamed | mask)
    return made.half()


RECIPE = """
version: 1
data: {images: 4}
stages: [{name: quant, type: quantize, bits: 8, rounding: nearest, residual: 0}]
"""


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"needs the real checkpoint {WEIGHTS}")
def test_the_same_bytes_come_of_both(tmp_path: Path) -> None:
    late = tuple(f"blocks.{number}." for number in range(BLOCKS, 12))
    state = {key: value for key, value in load_file(WEIGHTS).items() if not key.startswith(late)}
    save_file(state, file := tmp_path / "vit_small_patch14_dinov2.safetensors")
    as_transformers(state).save_pretrained(folder := tmp_path / "dinov2")
    (recipe := tmp_path / "recipe.yaml").write_text(RECIPE)
    written = []
    for number, source in enumerate((file, folder)):
        report = vitcompress.compress(
            recipe,
            source,
            out := tmp_path / str(number),
            calibration=IMAGES,
            settings=(f"model.options.depth={BLOCKS}",),
        )
        assert report.passed
        files = ("model.onnx", "model.safetensors", "config.json")
        written.append([sha256((out / file).read_bytes()).hexdigest() for file in files])
    assert written[0] == written[1]
