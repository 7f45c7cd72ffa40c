"""transformers: DINOv2, with registers or without."""

import math
import re
from dataclasses import replace

from torch import Tensor

from vitcompress.model.head import Head, LinearLayer
from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import separate_class_position
from vitcompress.model.layouts._renaming import joined, needed, renamed
from vitcompress.model.layouts._transformers import class_names
from vitcompress.model.layouts._transformers_plain import Usual, plain_vit, projections

_KINDS = ("dinov2", "dinov2_with_registers")
_MODEL = r"(?:dinov2(?:_with_registers)?\.)?"
_BLOCK = _MODEL + r"encoder\.layer\.(\d+)\."
_RULES = (
    (_MODEL + r"embeddings\.cls_token", "cls_token"),
    (_MODEL + r"embeddings\.register_tokens", "reg_token"),
    (_MODEL + r"embeddings\.position_embeddings", "pos_embed"),
    (_MODEL + r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (_BLOCK + r"attention\.attention\.(query|key|value)\.(.+)", r"blocks.\1.attn.\2.\3"),
    *projections(_BLOCK + r"attention\."),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)", r"blocks.\1.attn.proj.\2"),
    (_BLOCK + r"(norm[12]|mlp\.fc[12])\.(.+)", r"blocks.\1.\2.\3"),
    (_BLOCK + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (_BLOCK + r"mlp\.weights_in\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (_BLOCK + r"mlp\.(gate|up)_proj\.(.+)", r"blocks.\1.mlp.\2.\3"),
    (_BLOCK + r"mlp\.(?:weights_out|down_proj)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (_MODEL + r"layernorm\.(.+)", r"norm.\1"),
    (r"classifier\.(.+)", r"head.0.\1"),
)
_MASK = _MODEL + r"embeddings\.mask_token"
_SIZES = {384: "small", 1024: "large"}
_GATED = re.compile(r".*\.mlp\.(weights_in|gate_proj)\..+")


def matches(source: Source) -> bool:
    if kind := source.config.get("model_type"):
        return kind in _KINDS
    return any(re.fullmatch(_BLOCK + r"layer_scale1\.lambda1", key) for key in source.tensors)


def convert(source: Source) -> Converted:
    """Where a preprocessor_config.json has images of another size than the model was trained for,
    its positions are resampled to theirs, as the library does it. A classifier reads the class
    token together with the mean of all patches."""
    place = source.place
    tensors = renamed(source.tensors, _RULES, place, "transformers DINOv2", dropped=_MASK)
    tensors = joined(joined(tensors, place), place, ("gate", "up"), "fc1")
    size = _image_size(tensors, place)
    gated = any(map(_GATED.match, source.tensors))
    width = needed(tensors, "norm.weight", 1, place).shape[0]
    name = f"vit_{'giant' if gated else _SIZES.get(width, 'base')}_patch14_dinov2"
    registers = "reg_token" in tensors
    if registers:
        separate_class_position(tensors, place)
    # The library has no other activation in a gated MLP, whatever is said.
    config = {**source.config, "hidden_act": "silu"} if gated else source.config
    found = plain_vit(source, tensors, config, Usual(1e-6, "gelu", name))
    options = {k: v for k, v in found.options.items() if k != "act_layer" or not gated}
    if registers:
        count = needed(tensors, "reg_token", 3, place).shape[1]
        options |= {"reg_tokens": count, "no_embed_class": True}
    wanted = found.preprocess.get("input_size", size)
    if wanted != size:
        options["img_size"] = wanted
    found = replace(found, timm=name, options=options, antialias=registers)
    if "head.0.weight" not in tensors:
        return found
    del options["num_classes"]  # of timm, which has no such head
    classes = len(needed(tensors, "head.0.weight", 2, place))
    head = Head(pool="joined", layers=(LinearLayer(inputs=2 * width, outputs=classes),))
    return replace(found, head=head, classes=class_names(source))


def _image_size(tensors: dict[str, Tensor], place: str) -> tuple[int, int]:
    """Height and width of the images that the positions are those of, which are square."""
    patches = needed(tensors, "pos_embed", 3, place).shape[1] - 1
    height, width = needed(tensors, "patch_embed.proj.weight", 4, place).shape[2:]
    side = math.isqrt(patches)
    return side * height, side * width
