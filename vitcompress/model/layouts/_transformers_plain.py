"""What the plain ViTs of the transformers library have in common, and its towers of CLIP."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import assumed, plain_options
from vitcompress.model.layouts._renaming import Rules, needed, setting
from vitcompress.model.layouts._transformers import activation, class_names, preprocess

TEXT = (
    r"(text_model|text_projection)\..+|logit_scale|logit_bias"
    r"|(vision_model\.)?embeddings\.position_ids"
)
"""What of a model with two towers has no part in embedding images."""


@dataclass(frozen=True)
class Usual:
    """What a configuration of the library has where it does not say: epsilon of normalisations,
    `hidden_act`, and for which published model timm prepares images likewise."""

    norm_eps: float
    hidden_act: str
    images: str


def projections(block: str) -> Rules:
    """Rules for `q_proj`, `k_proj` and `v_proj`, which follow the pattern `block`."""
    names = ("query", "key", "value")
    return [(rf"{block}{name[0]}_proj\.(.+)", rf"blocks.\1.attn.{name}.\2") for name in names]


def plain_vit(
    source: Source, tensors: Mapping[str, Tensor], config: Mapping[str, Any], usual: Usual
) -> Converted:
    """The plain ViT of `tensors`, which have timm's names; its own name in timm is not said.

    `config`: the part of the description that speaks of it. Raises `InputError`.
    """
    place = source.place
    options = plain_options(tensors, place)
    if (act := activation(source, config, usual.hidden_act)) != "gelu":  # which timm has
        options["act_layer"] = act
    notes: tuple[str, ...] = ()
    if source.config:
        options["num_heads"] = setting(config, "num_attention_heads", int, 12, place)
        if isinstance(size := config.get("image_size"), list):
            options["img_size"] = size
    else:
        facts = (
            f"{options['num_heads']} heads, activation {act},"
            f" and images prepared as timm prepares them for {usual.images}"
        )
        keys = ("model.options.num_heads", "model.options.act_layer", "data.mean", "data.std")
        notes = (assumed(facts, *keys),)
    return Converted(
        timm=None,
        tensors=tensors,
        options=options,
        norm_eps=setting(config, "layer_norm_eps", float, usual.norm_eps, place),
        preprocess=preprocess(source),
        classes=class_names(source) if "head.weight" in tensors else None,
        notes=notes,
    )


_VISION = r"(?:vision_model\.)?"
_BLOCK = _VISION + r"encoder\.layers\.(\d+)\."
TOWER: Rules = (
    (_VISION + r"embeddings\.patch_embedding\.(.+)", r"patch_embed.proj.\1"),
    (_VISION + r"embeddings\.position_embedding\.weight", "pos_embed"),
    (_BLOCK + r"layer_norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
    *projections(_BLOCK + r"self_attn\."),
    (_BLOCK + r"self_attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (_BLOCK + r"(mlp\.fc[12]\..+)", r"blocks.\1.\2"),
    (_VISION + r"post_layernorm\.(.+)", r"norm.\1"),
    (r"classifier\.(.+)", r"head.\1"),
)
"""Rules for the tensors that the vision towers of CLIP and SigLIP share."""


def is_tower(source: Source, kinds: tuple[str, ...], *keys: str) -> bool:
    """Whether `source` has one of the `kinds` of configurations, or without one, such `keys`."""
    if kind := source.config.get("model_type"):
        return kind in kinds
    return {key.removeprefix("vision_model.") for key in source.tensors} >= set(keys)


def with_positions(tensors: dict[str, Tensor], place: str) -> dict[str, Tensor]:
    """`tensors` of a tower, its positions in the shape that timm has them in."""
    return tensors | {"pos_embed": needed(tensors, "pos_embed", 2, place)[None]}


def without_text(source: Source) -> tuple[str, ...]:
    """A note where a tower for texts is left out."""
    if any(key.startswith("text_model.") for key in source.tensors):
        return ("the text tower is left out: the model embeds images",)
    return ()
