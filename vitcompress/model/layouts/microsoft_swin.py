"""Swin and Swin-V2 of Microsoft, and of timm's first versions: stages end with their merging.

timm itself renumbers the mergings.
"""

import re

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import IMAGENET, assumed
from vitcompress.model.layouts._swin import DERIVED, base_model, swin_options

_FINE_TUNED = 384  # from this size on, models were fine-tuned and evaluated without a crop


def matches(source: Source) -> bool:
    keys = source.tensors.keys()
    if "layers.0.blocks.0.attn.qkv.weight" not in keys:
        return False
    merged = "layers.0.downsample.reduction.weight" in keys
    return merged or any(map(re.compile(DERIVED).fullmatch, keys))


def convert(source: Source) -> Converted:
    options = swin_options(source.tensors, source.place)
    size = options["img_size"]
    crop = (
        {"crop_pct": 1.0, "crop_mode": "squash"}
        if size >= _FINE_TUNED
        else {"crop_pct": 0.875, "crop_mode": "center"}
    )
    facts = f"images of {size} pixels, prepared as Microsoft's for this size"
    return Converted(
        timm=base_model(source.tensors),
        tensors={k: t for k, t in source.tensors.items() if not re.fullmatch(DERIVED, k)},
        options=options,
        norm_eps=1e-5,
        preprocess={**IMAGENET, "interpolation": "bicubic", **crop},
        notes=(assumed(facts, "model.options.img_size", "data.crop_pct", "data.crop_mode"),),
    )
