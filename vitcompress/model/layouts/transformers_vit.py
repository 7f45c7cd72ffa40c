"""transformers: ViTModel and ViTForImageClassification."""

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._renaming import (
    blocks_in,
    hidden_ratio,
    joined,
    needed,
    renamed,
    setting,
)
from vitcompress.model.layouts._transformers import activation, class_names, preprocess

_BLOCK = r"(?:vit\.)?encoder\.layer\.(\d+)\."
_RULES = (
    (r"(?:vit\.)?embeddings\.cls_token", "cls_token"),
    (r"(?:vit\.)?embeddings\.position_embeddings", "pos_embed"),
    (r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (_BLOCK + r"attention\.attention\.(query|key|value)\.(.+)", r"blocks.\1.attn.\2.\3"),
    (_BLOCK + r"attention\.output\.dense\.(.+)", r"blocks.\1.attn.proj.\2"),
    (_BLOCK + r"layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
    (_BLOCK + r"layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
    (_BLOCK + r"intermediate\.dense\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (_BLOCK + r"output\.dense\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (r"(?:vit\.)?layernorm\.(.+)", r"norm.\1"),
    (r"classifier\.(.+)", r"head.\1"),
)
_POOLER = r"(?:vit\.)?pooler\.dense\..+"


def matches(source: Source) -> bool:
    kind = source.config.get("model_type")
    keys = ("vit.embeddings.cls_token", "vit.encoder.layer.0.layernorm_before.weight")
    return kind == "vit" if kind else all(key in source.tensors for key in keys)


def convert(source: Source) -> Converted:
    tensors = renamed(source.tensors, _RULES, source.place, "transformers ViT", dropped=_POOLER)
    tensors = joined(tensors, source.place)
    config, place = source.config, source.place
    stem = needed(tensors, "patch_embed.proj.weight", place)
    options = {
        "embed_dim": stem.shape[0],
        "in_chans": stem.shape[1],
        "patch_size": stem.shape[2],
        "depth": blocks_in(tensors),
        "num_heads": setting(config, "num_attention_heads", int, stem.shape[0] // 64, place),
        "mlp_ratio": hidden_ratio(
            len(needed(tensors, "blocks.0.mlp.fc1.weight", place)), stem.shape[0]
        ),
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "act_layer": activation(source, config),
        "num_classes": len(tensors["head.weight"]) if "head.weight" in tensors else 0,
    }
    return Converted(
        timm="vit_base_patch16_224",
        tensors=tensors,
        options=options,
        norm_eps=setting(config, "layer_norm_eps", float, 1e-12, place),
        preprocess=preprocess(source),
        classes=class_names(source),
        notes=("the pooler of the transformers library is left out: the class token is the output",)
        if any("pooler." in key for key in source.tensors)
        else (),
    )
