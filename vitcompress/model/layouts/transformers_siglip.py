"""transformers: the vision tower of SigLIP and of SigLIP 2 at a fixed resolution, with a classifier
or without, alone or beside that for texts."""

from dataclasses import replace

from torch import Tensor

from vitcompress.errors import InputError
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

_NAME = "vit_base_patch16_siglip_224"
_HEAD = r"(?:vision_model\.)?head\."
_RULES = (
    (_HEAD + r"probe", "attn_pool.latent"),
    (_HEAD + r"attention\.in_proj_(.+)", r"attn_pool.qkv.\1"),
    (_HEAD + r"attention\.out_proj\.(.+)", r"attn_pool.proj.\1"),
    (_HEAD + r"layernorm\.(.+)", r"attn_pool.norm.\1"),
    (_HEAD + r"(mlp\.fc[12]\..+)", r"attn_pool.\1"),
    *TOWER,
)


def matches(source: Source) -> bool:
    kinds = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
    keys = ("embeddings.patch_embedding.bias", "embeddings.position_embedding.weight")
    return is_tower(source, kinds, *keys, "post_layernorm.weight")


def convert(source: Source) -> Converted:
    """A classifier, or a model without the pooling head, reads the mean of all patches."""
    place = source.place
    tensors = renamed(source.tensors, _RULES, place, "transformers SigLIP", dropped=TEXT)
    stem = tensors.get("patch_embed.proj.weight")
    if stem is not None and stem.ndim == 2:
        raise InputError(
            f"{place}: a SigLIP 2 for images of any shape (NaFlex), which is not supported;"
            " give one of a fixed resolution"
        )
    tensors = joined(with_positions(tensors, place), place)
    head = {k: tensors.pop(k) for k in list(tensors) if k.startswith("attn_pool.")}
    classifier = "classifier.weight" in source.tensors
    pooling: dict[str, str | bool] = {"global_pool": "avg", "fc_norm": False}
    notes = without_text(source)
    if head and not classifier:
        tensors |= _split(head, place)
        pooling = {"global_pool": "map"}
    elif head:
        notes += ("the pooling head is left out, which the classifier of the library does not use",)
    elif not classifier:
        notes += ("it has no pooling head: the mean of its patches is the output",)
    usual = Usual(1e-6, "gelu_pytorch_tanh", _NAME)
    found = plain_vit(source, tensors, tower_config(source), usual)
    return replace(
        found,
        timm=_NAME,
        options={**found.options, **pooling},
        notes=notes + found.notes,
    )


def _split(head: dict[str, Tensor], place: str) -> dict[str, Tensor]:
    """The tensors of a pooling head, queries apart from keys and values, as timm has them."""
    found = dict(head)
    for kind, dims in (("weight", 2), ("bias", 1)):
        joint = needed(found, f"attn_pool.qkv.{kind}", dims, place)
        width = len(joint) // 3
        found[f"attn_pool.q.{kind}"] = joint[:width].contiguous()
        found[f"attn_pool.kv.{kind}"] = joint[width:].contiguous()
        del found[f"attn_pool.qkv.{kind}"]
    return found
