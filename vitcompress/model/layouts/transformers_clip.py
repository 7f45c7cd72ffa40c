"""transformers: the vision tower of CLIP, with a projection or a classifier or without, alone or
beside that for texts."""

from dataclasses import replace

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._renaming import joined, needed, renamed
from vitcompress.model.layouts._transformers import tower_config
from vitcompress.model.layouts._transformers_plain import (
    TEXT,
    TOWER,
    Usual,
    is_tower,
    plain_vit,
    with_positions,
    without_text,
)

_NAME = "vit_base_patch16_clip_224"
_RULES = (
    (r"(?:vision_model\.)?embeddings\.class_embedding", "cls_token"),
    (r"(?:vision_model\.)?pre_layrnorm\.(.+)", r"norm_pre.\1"),  # their spelling
    (r"visual_projection\.weight", "head.weight"),
    *TOWER,
)


def matches(source: Source) -> bool:
    keys = ("embeddings.class_embedding", "embeddings.position_embedding.weight")
    return is_tower(source, ("clip", "clip_vision_model"), *keys, "pre_layrnorm.weight")


def convert(source: Source) -> Converted:
    """A classifier reads the mean of patches that no norm came before; all else the class token,
    normed."""
    place = source.place
    tensors = renamed(source.tensors, _RULES, place, "transformers CLIP", dropped=TEXT)
    tensors = joined(with_positions(tensors, place), place)
    tensors["cls_token"] = needed(tensors, "cls_token", 1, place)[None, None]
    if "visual_projection.weight" in source.tensors:
        head = needed(tensors, "head.weight", 2, place)
        tensors["head.bias"] = head.new_zeros(len(head))
    notes = without_text(source)
    classifier = "classifier.weight" in source.tensors
    pooling: dict[str, str | bool] = {"pre_norm": True}
    if classifier:
        pooling |= {"global_pool": "avg", "final_norm": False}
        tensors = {k: t for k, t in tensors.items() if not k.startswith("norm.")}
        notes += ("post_layernorm is left out, which the classifier of the library does not use",)
    found = plain_vit(source, tensors, tower_config(source), Usual(1e-5, "quick_gelu", _NAME))
    return replace(
        found,
        timm=_NAME,
        options={**found.options, **pooling},
        task=None if classifier else "embedding",
        notes=notes + found.notes,
    )
