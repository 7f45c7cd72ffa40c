"""transformers: DINOv3ViTModel."""

import re

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
    lengths,
    preprocess,
    without_config,
)

_START = r"(?:dinov3_vit\.)?"
_BLOCK = _START + r"(?:model\.)?layer\.(\d+)\."
_RULES = (
    (_START + r"embeddings\.cls_token", "cls_token"),
    (_START + r"embeddings\.register_tokens", "reg_token"),
    (_START + r"embeddings\.patch_embeddings\.(.+)", r"patch_embed.proj.\1"),
    (_BLOCK + r"norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
    (_BLOCK + r"attention\.([qv])_proj\.bias", r"blocks.\1.attn.\2_bias"),
    (_BLOCK + r"attention\.q_proj\.weight", r"blocks.\1.attn.query.weight"),
    (_BLOCK + r"attention\.k_proj\.weight", r"blocks.\1.attn.key.weight"),
    (_BLOCK + r"attention\.v_proj\.weight", r"blocks.\1.attn.value.weight"),
    (_BLOCK + r"attention\.o_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (_BLOCK + r"layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
    (_BLOCK + r"mlp\.gate_proj\.(.+)", r"blocks.\1.mlp.fc1_g.\2"),
    (_BLOCK + r"mlp\.up_proj\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (_BLOCK + r"mlp\.down_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (_START + r"norm\.(.+)", r"norm.\1"),
)
_DROPPED = r"(.*\.)?(embeddings\.mask_token|rope_embeddings\.inv_freq)"
_FIRST = re.compile(_START + r"(?:model\.)?layer\.0\.layer_scale1\.lambda1")


def matches(source: Source) -> bool:
    kind = source.config.get("model_type")
    return kind == "dinov3_vit" if kind else any(map(_FIRST.fullmatch, source.tensors))


def convert(source: Source) -> Converted:
    config, place = source.config, source.place
    tensors = joined(renamed(source.tensors, _RULES, place, "transformers DINOv3", _DROPPED), place)
    gated = "blocks.0.mlp.fc1_g.weight" in tensors
    check_activation(source, "silu" if gated else "gelu")
    if gated:
        tensors = {key.replace(".mlp.fc1.", ".mlp.fc1_x."): t for key, t in tensors.items()}
    registers = tensors.get("reg_token")
    if registers is not None and not registers.numel():
        del tensors["reg_token"]
    stem = needed(tensors, "patch_embed.proj.weight", 4, place)
    width, patch = stem.shape[0], stem.shape[2]
    first = needed(tensors, f"blocks.0.mlp.{'fc1_x' if gated else 'fc1'}.weight", 2, place)
    unseen = {
        "num_heads": setting(config, "num_attention_heads", int, max(width // 64, 1), place),
        "img_size": lengths(source, "image_size", 224),
        "rope_temperature": setting(config, "rope_theta", float, 100.0, place),
    }
    return Converted(
        timm="vit_small_patch16_dinov3",
        tensors=tensors,
        options={
            **unseen,
            "embed_dim": width,
            "in_chans": stem.shape[1],
            "patch_size": patch,
            "depth": blocks_in(tensors),
            "mlp_ratio": mlp_ratio(len(first), width),
            "swiglu_mlp": gated,
            # Any but 0 has gate and values in tensors of their own; 1 adds nothing to their width.
            "swiglu_align_to": int(gated),
            "qkv_bias": "blocks.0.attn.q_bias" in tensors,
            "num_reg_tokens": 0 if registers is None else registers.shape[1],
            "global_pool": "token",
            "num_classes": 0,
        },
        norm_eps=setting(config, "layer_norm_eps", float, 1e-5, place),
        preprocess=preprocess(source),
        notes=without_config(source, **unseen),
    )
