"""open_clip: image towers of its own, and those of timm (`visual.trunk.`), alone or beside a text
tower."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from vitcompress.errors import InputError
from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._plain import assumed, plain_options
from vitcompress.model.layouts._renaming import needed, renamed, setting
from vitcompress.model.naming import check_name

_FILE = "open_clip_config.json"
_setting = partial(setting, file=_FILE)
_TEXT = (
    r"(text|transformer|token_embedding|ln_final|text_decoder|text_projection)\..+"
    r"|text_projection|positional_embedding|logit_scale|logit_bias|attn_mask"
    r"|input_resolution|context_length|vocab_size"
)
_BLOCK = r"transformer\.resblocks\.(\d+)\."
_RULES = (
    (r"class_embedding", "cls_token"),
    (r"positional_embedding", "pos_embed"),
    (r"conv1\.weight", "patch_embed.proj.weight"),
    (r"ln_pre\.(.+)", r"norm_pre.\1"),
    (_BLOCK + r"ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
    (_BLOCK + r"ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
    (_BLOCK + r"attn\.in_proj_(.+)", r"blocks.\1.attn.qkv.\2"),
    (_BLOCK + r"attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (_BLOCK + r"mlp\.c_fc\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (_BLOCK + r"mlp\.c_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (r"ln_post\.(.+)", r"norm.\1"),
    (r"proj", "head.weight"),
)
_CLIP = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "resize_mode": "shortest",
}
_SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
_CROP_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}


def matches(source: Source) -> bool:
    keys = source.tensors.keys()
    own = {"class_embedding", "conv1.weight", "transformer.resblocks.0.ln_1.weight"}
    return (
        own <= {key.removeprefix("visual.") for key in keys}
        or any(key.startswith("visual.trunk.") for key in keys)
        or all(key.startswith(("trunk.", "head.")) for key in keys)
    )


def convert(source: Source) -> Converted:
    """The image tower, whose output is the embedding that those of texts are compared with."""
    tower, beside = _split(source.tensors, "visual.")
    if tower:
        renamed(beside, (), source.place, "open_clip", dropped=_TEXT)
    else:
        tower, beside = beside, {}
    trunk, head = _split(tower, "trunk.")
    found = _timm_tower(source, trunk, head) if trunk else _own_tower(source, tower)
    notes = ["the text tower is left out: the model embeds images"] if beside else []
    if not source.config:
        notes += found.notes
    if found.preprocess["crop_mode"] == "border":
        notes.append("images are padded with the mean colour; open_clip pads with fill_color")
    return replace(found, task="embedding", notes=tuple(notes))


def _split(
    tensors: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors under `prefix`, without it, and the others."""
    inside = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    return inside, {k: t for k, t in tensors.items() if not k.startswith(prefix)}


def _own_tower(source: Source, tower: Mapping[str, Tensor]) -> Converted:
    place = source.place
    tensors = renamed(tower, _RULES, place, "open_clip")
    tensors["cls_token"] = needed(tensors, "cls_token", 1, place)[None, None]
    tensors["pos_embed"] = needed(tensors, "pos_embed", 2, place)[None]
    options = plain_options(tensors, place)
    options["pre_norm"] = "norm_pre.weight" in tensors
    if not options["pre_norm"]:  # only then timm's stem has a bias
        tensors["patch_embed.proj.bias"] = tensors["pos_embed"].new_zeros(options["embed_dim"])
    if "head.weight" in tensors:
        head = needed(tensors, "head.weight", 2, place).T.contiguous()
        tensors |= {"head.weight": head, "head.bias": head.new_zeros(len(head))}
        options["num_classes"] = len(head)
    said = _section(source, "model_cfg", "vision_cfg")
    options |= _said_options(source, said, options["embed_dim"])
    if options.get("fc_norm"):
        rules = ((r"norm\.(.+)", r"fc_norm.\1"), (r"(.+)", r"\1"))
        tensors = renamed(tensors, rules, place, "open_clip")
    norm = _section(source, "model_cfg", "vision_cfg", "norm_kwargs")
    facts = f"{options['num_heads']} heads, exact GELU, and images prepared as CLIP's are"
    activation = "model.options.act_layer (quick_gelu for those of OpenAI)"
    return Converted(
        timm="vit_base_patch16_clip_224",
        tensors=tensors,
        options=options,
        norm_eps=_setting(norm, "eps", float, 1e-5, place),
        preprocess=_preprocess(source, _CLIP),
        notes=(assumed(facts, "model.options.num_heads", activation, "data.mean", "data.std"),),
    )


def _said_options(source: Source, said: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Options that no tensor tells, from its description; nothing where there is none."""
    if not source.config:
        return {}
    quick = _setting(_section(source, "model_cfg"), "quick_gelu", bool, False, source.place)
    tanh = _section(source, "model_cfg", "vision_cfg", "act_kwargs").get("approximate") == "tanh"
    options: dict[str, Any] = {
        "num_heads": width // max(1, _setting(said, "head_width", int, 64, source.place)),
        "act_layer": "quick_gelu" if quick else "gelu_tanh" if tanh else "gelu",
    }
    if said.get("image_size"):
        options["img_size"] = said["image_size"]
    pool = _setting(said, "pool_type", str, "tok", source.place)
    if pool not in ("tok", "avg"):
        raise InputError(f"{source.place}: pool_type {pool!r} of its {_FILE} is none of tok, avg")
    if pool == "avg":
        options |= {"global_pool": "avg", "fc_norm": bool(said.get("final_ln_after_pool"))}
    return options


def _timm_tower(
    source: Source, trunk: dict[str, Tensor], beside: Mapping[str, Tensor]
) -> Converted:
    """timm's model, with the projection that follows it as its head."""
    place = source.place
    said = _section(source, "model_cfg", "vision_cfg")
    name = _setting(said, "timm_model_name", str, None, place)
    siglip = "attn_pool.latent" in trunk
    if name is not None:
        check_name(name, f"{place}: its {_FILE}")
        options = _pooling(said, trunk)
    elif siglip:
        name = "vit_base_patch16_siglip_224"
        options = plain_options(trunk, place)
        options["num_heads"] = min(16, options["num_heads"])
    else:
        options = {}
    layer = _classifier(name, trunk)
    rules = (
        (r"head\.(?:proj|mlp\.fc2)\.(.+)", layer + r".\1"),
        (r"head\.mlp\.fc1\.(.+)", r"head.pre_logits.fc.\1"),
    )
    head = renamed(beside, rules, place, "open_clip")
    if f"{layer}.weight" in head:
        weight = needed(head, f"{layer}.weight", 2, place)
        head.setdefault(f"{layer}.bias", weight.new_zeros(len(weight)))
        options["num_classes"] = len(weight)
    if (hidden := head.get("head.pre_logits.fc.weight")) is not None:
        options["head_hidden_size"] = hidden.shape[0]
    kind = "SigLIP" if siglip else "CLIP"
    facts = f"exact GELU, heads usual for the width, and images prepared as those of {kind}"
    return Converted(
        timm=name,
        tensors=trunk | head,
        options=options,
        preprocess=_preprocess(source, _SIGLIP if siglip and not source.config else _CLIP),
        notes=(assumed(facts, "model.name", "model.options", "data.mean", "data.std"),),
    )


def _pooling(said: Mapping[str, Any], trunk: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options for what the tower does before its projection, as open_clip builds timm's models."""
    pool = said.get("timm_pool", "avg")
    if not said.get("timm_proj", "linear"):  # the head is that of timm
        return {"global_pool": pool}
    options: dict[str, Any] = {"num_classes": 0}
    if pool:
        options["global_pool"] = pool
        if pool == "avg" and "norm.weight" in trunk and "blocks.0.norm1.weight" in trunk:
            options["fc_norm"] = False  # pooling is set after the model is made, with its norm
    return options


def _classifier(name: str | None, trunk: Mapping[str, Tensor]) -> str:
    """What timm calls the head of the model `name`."""
    if name is None:
        return "head" if "blocks.0.norm1.weight" in trunk else "head.fc"
    import timm

    found = timm.models.get_pretrained_cfg(name).classifier
    return found if isinstance(found, str) else "head"


def _section(source: Source, *path: str) -> Mapping[str, Any]:
    """The object at `path` of the description; an empty one where it is not there."""
    found = source.config
    for key in path:
        inner = found.get(key) or {}
        if not isinstance(inner, Mapping):
            raise InputError(f"{source.place}: {key} of its {_FILE} is no JSON object; correct it")
        found = inner
    return found


def _preprocess(source: Source, default: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Preprocess` from the description, else those of `default`."""
    told = _section(source, "preprocess_cfg")
    said = {**default, **{key: value for key, value in told.items() if value is not None}}
    mode = _setting(said, "resize_mode", str, None, source.place)
    if mode not in _CROP_MODES:
        known = ", ".join(_CROP_MODES)
        raise InputError(f"{source.place}: resize_mode {mode!r} of its {_FILE} is none of {known}")
    bilinear = said.get("interpolation") == "bilinear"
    return {
        "mean": said["mean"] if isinstance(said["mean"], list) else [said["mean"]] * 3,
        "std": said["std"] if isinstance(said["std"], list) else [said["std"]] * 3,
        "interpolation": "bilinear" if bilinear else "bicubic",
        "crop_pct": 1.0,
        "crop_mode": _CROP_MODES[mode],
    }
