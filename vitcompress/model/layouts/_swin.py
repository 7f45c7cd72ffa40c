"""What the tensors of a Swin or Swin-V2 tell of it, by the names of timm inside its stages."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitcompress.model.layouts._plain import mlp_ratio
from vitcompress.model.layouts._renaming import blocks_in, needed

DERIVED = r".*\.(attn_mask|relative_position_index|relative_coords_table)"
"""Tensors that timm computes anew."""


def base_model(tensors: Mapping[str, Tensor]) -> str:
    """timm's name of a model of the same version."""
    second = "layers.0.blocks.0.attn.logit_scale" in tensors
    return "swinv2_tiny_window8_256" if second else "swin_tiny_patch4_window7_224"


def swin_options(tensors: Mapping[str, Tensor], place: str) -> dict[str, Any]:
    """Arguments of timm's constructors, from tensors with those that are `DERIVED`.

    The head may be called `head` or `head.fc`. Raises `InputError` where tensors are missing.
    """
    stem = needed(tensors, "patch_embed.proj.weight", 4, place)
    width, channels, patch, _ = stem.shape
    stages = blocks_in(tensors, r"layers\.(\d+)\.")
    hidden = len(needed(tensors, "layers.0.blocks.0.mlp.fc1.weight", 2, place))
    biases = ("attn.qkv.bias", "attn.q_bias")
    head = next((key for key in ("head.weight", "head.fc.weight") if key in tensors), None)
    options = {
        "embed_dim": width,
        "in_chans": channels,
        "patch_size": patch,
        "depths": [blocks_in(tensors, rf"layers\.{s}\.blocks\.(\d+)\.") for s in range(stages)],
        "num_heads": [_heads(tensors, s, place) for s in range(stages)],
        "window_size": _window(tensors, 0),
        "mlp_ratio": mlp_ratio(hidden, width),
        "qkv_bias": any(f"layers.0.blocks.0.{bias}" in tensors for bias in biases),
        "num_classes": 0 if head is None else len(needed(tensors, head, 2, place)),
        "img_size": patch * _grid(tensors, stages),
    }
    if "layers.0.blocks.0.attn.logit_scale" in tensors:
        options["pretrained_window_sizes"] = [_pretrained(tensors, s) for s in range(stages)]
    return options


def _heads(tensors: Mapping[str, Tensor], stage: int, place: str) -> int:
    first = f"layers.{stage}.blocks.0.attn."
    scale = tensors.get(first + "logit_scale")
    if scale is not None:
        return scale.numel()
    return needed(tensors, first + "relative_position_bias_table", 2, place).shape[1]


def _window(tensors: Mapping[str, Tensor], stage: int) -> int:
    """The side of the windows of `stage`; 8, which is usual for Swin-V2, where nothing tells it."""
    first = f"layers.{stage}.blocks.0.attn."
    table = tensors.get(first + "relative_position_bias_table")
    if table is not None and table.ndim == 2:
        return (math.isqrt(len(table)) + 1) // 2
    if (coordinates := tensors.get(first + "relative_coords_table")) is not None:
        return (math.isqrt(coordinates.numel() // 2) + 1) // 2
    if (index := tensors.get(first + "relative_position_index")) is not None:
        return math.isqrt(math.isqrt(index.numel()))
    return 8


def _grid(tensors: Mapping[str, Tensor], stages: int) -> int:
    """How many patches an image has along a side: as many as the masks of shifted windows are for;
    where there are none, the last stage is one window."""
    for key, mask in tensors.items():
        found = re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.attn_mask", key)
        if found and mask.ndim == 3:
            stage = int(found[1])
            return math.isqrt(len(mask)) * _window(tensors, stage) << stage
    return _window(tensors, stages - 1) << (stages - 1)


def _pretrained(tensors: Mapping[str, Tensor], stage: int) -> int:
    """The window that the coordinates of Swin-V2 are scaled by; 0 where it is that of the model.

    The largest coordinate is log₈(1 + 8 (w − 1) / (p − 1)) for windows of w and p.
    """
    table = tensors.get(f"layers.{stage}.blocks.0.attn.relative_coords_table")
    window = _window(tensors, stage)
    largest = 0.0 if table is None or not table.numel() else float(table.max())
    if window < 2 or not 0 < largest < 4:
        return 0
    found = round(8 * (window - 1) / (8**largest - 1)) + 1
    return 0 if found == window else found
