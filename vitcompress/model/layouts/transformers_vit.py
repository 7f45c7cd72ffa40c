"""transformers: ViT, DeiT (distilled or not) and ViTMAE, with a classifier or without."""

from dataclasses import replace

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._renaming import joined, renamed
from vitcompress.model.layouts._transformers_plain import Usual, plain_vit, projections

_KINDS = ("vit", "deit", "vit_mae", "vit_msn")
_MODEL = r"(?:(?:vit|deit)\.)?"
_BLOCK = _MODEL + r"(?:encoder\.layer|layers)\.(\d+)\."
_RULES = (
    (_MODEL + r"embeddings\.cls_token", "cls_token"),
    (_MODEL + r"embeddings\.position_embeddings", "pos_embed"),
    (_MODEL + r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (_BLOCK + r"attention\.attention\.(query|key|value)\.(.+)", r"blocks.\1.attn.\2.\3"),
    *projections(_BLOCK + r"attention\."),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)", r"blocks.\1.attn.proj.\2"),
    (_BLOCK + r"layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
    (_BLOCK + r"layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
    (_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (_MODEL + r"layernorm\.(.+)", r"norm.\1"),
    (r"(?:cls_)?classifier\.(.+)", r"head.\1"),
    (r"distillation_classifier\.(.+)", r"head_dist.\1"),
)
_TOKEN = _MODEL + r"embeddings\.distillation_token"
_POOLER = _MODEL + r"pooler\.dense\..+"
_DECODER = r"decoder\..+"
_MASK = _MODEL + r"embeddings\.mask_token"


def matches(source: Source) -> bool:
    if kind := source.config.get("model_type"):
        return kind in _KINDS
    keys = {key.removeprefix("vit.").removeprefix("deit.") for key in source.tensors}
    around = {"embeddings.cls_token", "embeddings.position_embeddings", "layernorm.weight"}
    first = ("encoder.layer.0.layernorm_before.weight", "layers.0.layernorm_before.weight")
    beit = any(key.endswith(".lambda_1") for key in keys)
    return around <= keys and not keys.isdisjoint(first) and not beit


def convert(source: Source) -> Converted:
    """The class token of a DeiT without a head for its distillation token is all that is read:
    to timm, the other is a register."""
    keys = " ".join(source.tensors)
    distilled = "distillation_classifier." in keys
    token = "dist_token" if distilled else "reg_token"
    tensors = renamed(
        source.tensors,
        ((_TOKEN, token), *_RULES),
        source.place,
        "transformers ViT",
        dropped=f"{_POOLER}|{_DECODER}|{_MASK}",
    )
    tensors = joined(tensors, source.place)
    masked = "decoder.decoder_" in keys or source.config.get("model_type") == "vit_mae"
    if token in tensors:
        name = "deit_base_distilled_patch16_224" if distilled else "deit_base_patch16_224"
    else:
        name = "vit_base_patch16_224.mae" if masked else "vit_base_patch16_224"
    found = plain_vit(source, tensors, source.config, Usual(1e-12, "gelu", name))
    notes = list(found.notes)
    if "pooler." in keys:
        notes.append(
            "the pooler of the transformers library is left out: the class token is the output"
        )
    if "decoder." in keys:
        notes.append("the decoder is left out: the class token of the encoder is the output")
    registers = {"reg_tokens": 1} if "reg_token" in tensors else {}
    return replace(found, timm=name, options={**found.options, **registers}, notes=tuple(notes))
