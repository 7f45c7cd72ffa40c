"""transformers: Swin and Swin V2, the models, and those for image classification."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitcompress.errors import InputError
from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import mlp_ratio
from vitcompress.model.layouts._renaming import (
    blocks_in,
    joined,
    needed,
    renamed,
    setting,
)
from vitcompress.model.layouts._transformers import (
    activation,
    check_activation,
    class_names,
    lengths,
    preprocess,
    without_config,
)

_START = r"(?:swin\.|swinv2\.)?"
_LAYER = _START + r"encoder\.layers\.(\d+)\."
_BLOCK = _LAYER + r"blocks\.(\d+)\."
_ATTENTION = _BLOCK + r"attention\.(?:self\.)?"
_RULES = (
    (_START + r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (_START + r"embeddings\.norm\.(.+)", r"patch_embed.norm.\1"),
    (_LAYER + r"downsample\.(.+)", r"layers.\1.downsample.\2"),
    (_ATTENTION + r"(?:query|q_proj)\.(.+)", r"layers.\1.blocks.\2.attn.query.\3"),
    (_ATTENTION + r"(?:key|k_proj)\.(.+)", r"layers.\1.blocks.\2.attn.key.\3"),
    (_ATTENTION + r"(?:value|v_proj)\.(.+)", r"layers.\1.blocks.\2.attn.value.\3"),
    (
        _ATTENTION + r"(?:relative_position_bias\.)?relative_position_bias_table",
        r"layers.\1.blocks.\2.attn.relative_position_bias_table",
    ),
    (_ATTENTION + r"logit_scale", r"layers.\1.blocks.\2.attn.logit_scale"),
    (_ATTENTION + r"continuous_position_bias_mlp\.(.+)", r"layers.\1.blocks.\2.attn.cpb_mlp.\3"),
    (
        _BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)",
        r"layers.\1.blocks.\2.attn.proj.\3",
    ),
    (_BLOCK + r"layernorm_before\.(.+)", r"layers.\1.blocks.\2.norm1.\3"),
    (_BLOCK + r"layernorm_after\.(.+)", r"layers.\1.blocks.\2.norm2.\3"),
    (_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
    (_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(.+)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
    (_START + r"layernorm\.(.+)", r"norm.\1"),
    (r"classifier\.(.+)", r"head.fc.\1"),
)
_DROPPED = r"(.*\.)?(mask_token|relative_position_index|relative_coords_table)"
_FIRST = re.compile(_START + r"encoder\.layers\.0\.blocks\.0\.attention\.(self\.query|q_proj)\..+")
_WINDOW = 7  # where nothing tells it


def matches(source: Source) -> bool:
    kind = source.config.get("model_type")
    return kind in ("swin", "swinv2") if kind else any(map(_FIRST.fullmatch, source.tensors))


def convert(source: Source) -> Converted:
    place = source.place
    tensors = _tensors(source)
    second = "layers.0.blocks.0.attn.logit_scale" in tensors
    if not second:
        check_activation(source, "gelu")
    stem = needed(tensors, "patch_embed.proj.weight", 4, place)
    window = _window(source, tensors)
    depths = [
        blocks_in(tensors, rf"layers\.{layer}\.blocks\.(\d+)\.")
        for layer in range(blocks_in(tensors, r"layers\.(\d+)\."))
    ]
    # By default the last grid is one window, as in most of the published models.
    one = stem.shape[2] * window * 2 ** (len(depths) - 1)
    image = lengths(source, "image_size", one)
    _check_windows(place, image, stem.shape[2], window, depths)
    heads = "logit_scale" if second else "relative_position_bias_table"
    unseen: dict[str, Any] = {"img_size": image}
    options: dict[str, Any] = {
        "img_size": image,
        "patch_size": stem.shape[2],
        "in_chans": stem.shape[1],
        "embed_dim": stem.shape[0],
        "depths": depths,
        "num_heads": [
            needed(
                tensors, f"layers.{layer}.blocks.0.attn.{heads}", 3 if second else 2, place
            ).shape[not second]
            for layer in range(len(depths))
        ],
        "window_size": window,
        "mlp_ratio": mlp_ratio(
            len(needed(tensors, "layers.0.blocks.0.mlp.fc1.weight", 2, place)), stem.shape[0]
        ),
        "qkv_bias": f"layers.0.blocks.0.attn.{'q_bias' if second else 'qkv.bias'}" in tensors,
        "num_classes": len(tensors["head.fc.weight"]) if "head.fc.weight" in tensors else 0,
    }
    if second:
        trained = source.config.get("pretrained_window_sizes") or [0] * len(depths)
        unseen |= {"window_size": window, "pretrained_window_sizes": trained}
        options |= {"act_layer": activation(source, source.config)}
        options |= {"pretrained_window_sizes": trained}
    return Converted(
        timm="swinv2_tiny_window8_256" if second else "swin_tiny_patch4_window7_224",
        tensors=tensors,
        options=options,
        norm_eps=setting(source.config, "layer_norm_eps", float, 1e-5, place),
        preprocess=preprocess(source),
        classes=class_names(source),
        notes=without_config(source, **unseen),
    )


def _tensors(source: Source) -> dict[str, Tensor]:
    """By timm's names: it halves the grid before a stage and not after one, and has no place for a
    bias of the keys of Swin V2."""
    found = renamed(source.tensors, _RULES, source.place, "transformers Swin", _DROPPED)
    second = any(key.endswith(".logit_scale") for key in found)
    tensors: dict[str, Tensor] = {}
    for key, tensor in found.items():
        new = re.sub(
            r"layers\.(\d+)\.downsample",
            lambda match: f"layers.{int(match[1]) + 1}.downsample",
            key,
        )
        if second:
            new = re.sub(r"\.(q)uery\.bias|\.(v)alue\.bias", _own_bias, new)
        tensors[new] = tensor
    return joined(tensors, source.place)


def _own_bias(match: re.Match[str]) -> str:
    return f".{match[1] or match[2]}_bias"


def _window(source: Source, tensors: Mapping[str, Tensor]) -> int:
    """The side of a window: by its table of (2·side − 1)² relative positions, or by their index."""
    table = tensors.get("layers.0.blocks.0.attn.relative_position_bias_table")
    if table is not None:
        return (math.isqrt(len(table)) + 1) // 2
    indices = (t for key, t in source.tensors.items() if key.endswith("relative_position_index"))
    side = max((math.isqrt(len(index)) for index in indices), default=_WINDOW)
    return int(setting(source.config, "window_size", int, side, source.place))


def _check_windows(
    place: str, image: int | list[int], patch: int, window: int, depths: list[int]
) -> None:
    """Raise `InputError` for grids that the library shifts otherwise than timm: it fills them up
    to whole windows before the shift, and shifts along both axes or along none."""
    sides = [image, image] if isinstance(image, int) else image
    if any(side % patch for side in sides):
        raise InputError(f"{place}: image_size {image} is no whole patches of {patch}; correct it")
    grid = [side // patch for side in sides]
    for depth in depths:
        single = [side <= window for side in grid]
        uneven = not all(single) and any(side % window for side in grid)
        if depth > 1 and (any(single) != all(single) or uneven):
            raise InputError(
                f"{place}: a stage of {grid[0]}×{grid[1]} patches has no whole windows of"
                f" {window}×{window}, which timm shifts otherwise than the transformers library;"
                " give another model"
            )
        grid = [(side + 1) // 2 for side in grid]
