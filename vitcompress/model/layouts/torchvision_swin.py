"""torchvision: SwinTransformer, of both versions."""

import re

from torch import Tensor

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import IMAGENET, assumed
from vitcompress.model.layouts._renaming import renamed
from vitcompress.model.layouts._swin import DERIVED, base_model, swin_options

_BLOCK = r"stage\.(\d+)\.(\d+)\."
_RULES = (
    (r"features\.0\.0\.(.+)", r"patch_embed.proj.\1"),
    (r"features\.0\.2\.(.+)", r"patch_embed.norm.\1"),
    (_BLOCK + r"mlp\.0\.(.+)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
    (_BLOCK + r"mlp\.3\.(.+)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
    (_BLOCK + r"((?:norm[12]|attn)\..+)", r"layers.\1.blocks.\2.\3"),
    (r"merging\.(\d+)\.(.+)", r"layers.\1.downsample.\2"),
    (r"(norm\..+)", r"\1"),
    (r"head\.(.+)", r"head.fc.\1"),
)
# Edges that images are resized to before the crop, by version, width and depth; 256 for others.
_RESIZED = {
    (1, 96, 12): 232,
    (1, 96, 24): 246,
    (1, 128, 24): 238,
    (2, 96, 12): 260,
    (2, 96, 24): 260,
    (2, 128, 24): 272,
}


def matches(source: Source) -> bool:
    return {"features.0.0.weight", "features.1.0.attn.qkv.weight"} <= source.tensors.keys()


def convert(source: Source) -> Converted:
    numbered = {_stages(key): tensor for key, tensor in source.tensors.items()}
    named = renamed(numbered, _RULES, source.place, "torchvision Swin")
    base = base_model(named)
    version = 2 if "v2" in base else 1
    tensors = _separate_biases(named) if version == 2 else named
    options = swin_options(tensors, source.place)
    size = options["img_size"]
    edge = _RESIZED.get((version, options["embed_dim"], sum(options["depths"])), 256)
    crop = size / edge if size in (224, 256) else 1.0
    facts = f"images of {size} pixels, prepared as torchvision's of this architecture"
    return Converted(
        timm=base,
        tensors={k: t for k, t in tensors.items() if not re.fullmatch(DERIVED, k)},
        options=options,
        norm_eps=1e-5,
        preprocess={**IMAGENET, "interpolation": "bicubic", "crop_pct": crop},
        notes=(assumed(facts, "model.options.img_size", "data.crop_pct"),),
    )


def _stages(key: str) -> str:
    """Stages and the mergings before them, which count through in `features`, by their stage."""
    found = re.match(r"features\.(\d+)\.", key)
    if not found or (place := int(found[1])) == 0:
        return key
    kind = "stage" if place % 2 else "merging"
    return f"{kind}.{place // 2}.{key.removeprefix(found[0])}"


def _separate_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases of queries and values apart, as in timm; torchvision sets those of keys to zero."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.endswith(".attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            found[key.replace("qkv.bias", "q_bias")] = query
            found[key.replace("qkv.bias", "v_bias")] = value
        else:
            found[key] = tensor
    return found
