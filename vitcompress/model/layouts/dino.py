"""DINO of Facebook Research, and iBOT: a `backbone.` with the head that only training uses."""

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import PLAIN, assumed, plain_options
from vitcompress.model.layouts._renaming import renamed

_RULES = tuple((r"(?:backbone\.)?" + pattern, name) for pattern, name in PLAIN)
_HEAD = r"head\.(mlp|last_layer2?)\..+|(backbone\.)?masked_embed"


def matches(source: Source) -> bool:
    keys = {key.removeprefix("backbone.") for key in source.tensors}
    head = any(key.startswith("head.last_layer.") for key in keys)
    return head and {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"} <= keys


def convert(source: Source) -> Converted:
    tensors = renamed(source.tensors, _RULES, source.place, "DINO", dropped=_HEAD)
    options = plain_options(tensors, source.place)
    facts = f"{options['num_heads']} heads, and images prepared as timm prepares them for DINO"
    return Converted(
        timm="vit_small_patch16_224.dino",
        tensors=tensors,
        options=options,
        norm_eps=1e-6,
        notes=(
            "the head of its training is left out: the class token is the output",
            assumed(facts, "model.options.num_heads", "data.mean", "data.std"),
        ),
    )
