"""What the tensors of a plain ViT tell of it, once they have the names of timm."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitcompress.model.layouts._renaming import blocks_in, needed

# SO400M, ViT-H, g, G and e; narrower models, and one of 1536 channels, have a head for each 64.
_OF_SIXTEEN_HEADS = (1152, 1280, 1408, 1664, 1792)

_BLOCK = r"blocks\.(\d+)\."
PLAIN = (
    (r"(cls_token|pos_embed)", r"\1"),
    (r"(patch_embed\.proj\..+)", r"\1"),
    (_BLOCK + r"((?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\..+)", r"blocks.\1.\2"),
    (r"((?:norm|head)\.(?:weight|bias))", r"\1"),
)
"""Rules that leave the names of a plain ViT as they are."""

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Fields of `Preprocess` for pixels normalised by the statistics of ImageNet."""


def usual_heads(width: int) -> int:
    """How many heads published models of this width have."""
    return 16 if width in _OF_SIXTEEN_HEADS else max(1, width // 64)


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio that timm makes so many hidden units of."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def plain_options(tensors: Mapping[str, Tensor], place: str) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer for `tensors`; the heads are those usual for the width.

    Raises `InputError` where the tensors that tell them are missing.
    """
    stem = needed(tensors, "patch_embed.proj.weight", 4, place)
    width, channels, *patch = stem.shape
    headless = "head.weight" not in tensors
    return {
        "embed_dim": width,
        "in_chans": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "depth": blocks_in(tensors),
        "num_heads": usual_heads(width),
        "mlp_ratio": mlp_ratio(len(needed(tensors, "blocks.0.mlp.fc1.weight", 2, place)), width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
        "num_classes": 0 if headless else len(needed(tensors, "head.weight", 2, place)),
    }


def separate_class_position(tensors: dict[str, Tensor], place: str) -> None:
    """Add the position of the class token to it (in place): timm has none there where there are
    registers. Raises `InputError`."""
    positions = needed(tensors, "pos_embed", 3, place)
    tensors["cls_token"] = needed(tensors, "cls_token", 3, place) + positions[:, :1]
    tensors["pos_embed"] = positions[:, 1:].contiguous()


def assumed(facts: str, *keys: str) -> str:
    """A note on `facts` that no tensor tells; `keys`: where a recipe says others."""
    return f"its tensors do not tell, so this is taken: {facts}; else set {', '.join(keys)}"
