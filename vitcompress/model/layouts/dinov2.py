"""DINOv2 of Meta: published backbones, and `backbone.` beside the heads that only training uses."""

import re

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import (
    PLAIN,
    assumed,
    plain_options,
    separate_class_position,
)
from vitcompress.model.layouts._renaming import needed, renamed

_BLOCK = r"blocks\.(?:\d+\.)?(\d+)\."  # in chunks of blocks, which are numbered through
_RULES = tuple(
    (r"(?:backbone\.)?" + pattern, name)
    for pattern, name in (
        *PLAIN,
        (r"register_tokens", "reg_token"),
        (_BLOCK + r"mlp\.w12\.(.+)", r"blocks.\1.mlp.fc1.\2"),
        (_BLOCK + r"mlp\.w3\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        (_BLOCK + r"((?:norm[12]|attn\.qkv|attn\.proj|ls[12]|mlp\.fc[12])\..+)", r"blocks.\1.\2"),
    )
)
_TRAINING = r"(dino_head|ibot_head|dino_loss|ibot_patch_loss|koleo_loss)\..+"
_MASK = r"(backbone\.)?mask_token"


def matches(source: Source) -> bool:
    keys = {key.removeprefix("backbone.") for key in source.tensors}
    chunked = "blocks.0.0.ls1.gamma" in keys
    scaled = chunked or "blocks.0.ls1.gamma" in keys
    told = {"mask_token", "register_tokens", "blocks.0.mlp.w12.weight"} & keys
    return scaled and (chunked or bool(told)) and {"cls_token", "pos_embed"} <= keys


def convert(source: Source) -> Converted:
    tensors = renamed(
        source.tensors, _RULES, source.place, "DINOv2", dropped=f"{_MASK}|{_TRAINING}"
    )
    gated = any(".mlp.w12." in key for key in source.tensors)
    registers = tensors.get("reg_token")
    options = plain_options(tensors, source.place)
    if registers is not None:
        separate_class_position(tensors, source.place)
        count = needed(tensors, "reg_token", 3, source.place).shape[1]
        options |= {"reg_tokens": count, "no_embed_class": True}
    facts = f"{options['num_heads']} heads, and images prepared as timm prepares them for DINOv2"
    heads = any(re.fullmatch(_TRAINING, key) for key in source.tensors)
    return Converted(
        timm="vit_giant_patch14_dinov2" if gated else "vit_base_patch14_dinov2",
        tensors=tensors,
        options=options,
        norm_eps=1e-6,
        notes=(
            *(["the heads of its training are left out"] if heads else []),
            assumed(facts, "model.options.num_heads", "data.mean", "data.std"),
        ),
    )
