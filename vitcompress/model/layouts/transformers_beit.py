"""transformers: BEiT and Data2VecVision, the models, and those for image classification.

The model for masked images, too: its own normalisation is kept, its head over visual words is not.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

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
    check_activation,
    class_names,
    lengths,
    preprocess,
    without_config,
)

_START = r"(?:beit\.|data2vec_vision\.)?"
_BLOCK = _START + r"(?:encoder\.layer|layers)\.(\d+)\."
_ATTENTION = _BLOCK + r"attention\.(?:attention\.)?"
_TABLE = r"relative_position_bias\.relative_position_bias_table"
_RULES = (
    (_START + r"embeddings\.cls_token", "cls_token"),
    (_START + r"embeddings\.position_embeddings", "pos_embed"),
    (_START + r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (
        _START + r"(?:encoder\.relative_position_bias|shared_position_bias)"
        r"\.relative_position_bias_table",
        "rel_pos_bias.relative_position_bias_table",
    ),
    (
        _BLOCK + r"(?:attention\.attention\.)?" + _TABLE,
        r"blocks.\1.attn.relative_position_bias_table",
    ),
    (_ATTENTION + r"(?:query|q_proj)\.bias", r"blocks.\1.attn.q_bias"),
    (_ATTENTION + r"(?:value|v_proj)\.bias", r"blocks.\1.attn.v_bias"),
    (_ATTENTION + r"(?:query|q_proj)\.weight", r"blocks.\1.attn.query.weight"),
    (_ATTENTION + r"(?:key|k_proj)\.weight", r"blocks.\1.attn.key.weight"),
    (_ATTENTION + r"(?:value|v_proj)\.weight", r"blocks.\1.attn.value.weight"),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)", r"blocks.\1.attn.proj.\2"),
    (_BLOCK + r"layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
    (_BLOCK + r"layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
    (_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (_BLOCK + r"lambda_([12])", r"blocks.\1.gamma_\2"),
    (_START + r"pooler\.layernorm\.(.+)", r"fc_norm.\1"),
    (_START + r"layernorm\.(.+)", r"norm.\1"),
    (r"classifier\.(.+)", r"head.\1"),
)
_DROPPED = r"(.*\.)?(mask_token|relative_position_index)|lm_head\..+"
_FIRST = re.compile(
    rf"{_START}(?:encoder\.layer|layers)\.0\.(?:lambda_1|(?:attention\.attention\.)?{_TABLE})"
)


def matches(source: Source) -> bool:
    kind = source.config.get("model_type")
    return kind in ("beit", "data2vec-vision") if kind else any(map(_FIRST.match, source.tensors))


def convert(source: Source) -> Converted:
    tensors = renamed(source.tensors, _RULES, source.place, "transformers BEiT", dropped=_DROPPED)
    tensors = joined(tensors, source.place)
    check_activation(source, "gelu")
    words = any(key.startswith("lm_head.") for key in source.tensors)
    shapes, notes = _shapes(source, tensors)
    if words:
        notes = ("the head over visual words is left out", *notes)
    return Converted(
        timm="beit_base_patch16_224",
        tensors=tensors,
        options={
            **shapes,
            "depth": blocks_in(tensors),
            "qkv_bias": "blocks.0.attn.q_bias" in tensors,
            "init_values": 0.1 if "blocks.0.gamma_1" in tensors else 0.0,
            "use_abs_pos_emb": "pos_embed" in tensors,
            "use_rel_pos_bias": "blocks.0.attn.relative_position_bias_table" in tensors,
            "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in tensors,
            "global_pool": "token" if "norm.weight" in tensors else "avg",
            "num_classes": len(tensors["head.weight"]) if "head.weight" in tensors else 0,
        },
        norm_eps=setting(source.config, "layer_norm_eps", float, 1e-12, source.place),
        preprocess=preprocess(source),
        classes=class_names(source),
        notes=notes,
    )


def _shapes(
    source: Source, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The sizes of the model, and what is to be said of those that had to be assumed."""
    stem = needed(tensors, "patch_embed.proj.weight", 4, source.place)
    width, patch = stem.shape[0], stem.shape[2]
    table = next((t for key, t in tensors.items() if key.endswith("bias_table")), None)
    unseen: dict[str, Any] = {}
    if table is not None:
        heads = table.shape[1]
        # (2·side − 1)² relative positions, and three of the class token.
        side = (math.isqrt(len(table) - 3) + 1) // 2
        image = lengths(source, "image_size", side * patch)
    else:
        heads = setting(source.config, "num_attention_heads", int, width // 64, source.place)
        unseen["num_heads"] = heads
        side = math.isqrt(tensors["pos_embed"].shape[1] - 1) if "pos_embed" in tensors else 0
        image = lengths(source, "image_size", side * patch or 224)
        if not side:
            unseen["img_size"] = image
    hidden = len(needed(tensors, "blocks.0.mlp.fc1.weight", 2, source.place))
    sizes = {
        "embed_dim": width,
        "in_chans": stem.shape[1],
        "patch_size": patch,
        "num_heads": heads,
        "mlp_ratio": mlp_ratio(hidden, width),
        "img_size": image,
    }
    return sizes, without_config(source, **unseen)
