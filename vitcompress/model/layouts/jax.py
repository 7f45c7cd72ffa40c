"""Vision transformers of Google in JAX (vit_jax, big_vision): a .npz, as timm converts it."""

import io
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from vitcompress.errors import InputError
from vitcompress.lines import one_line
from vitcompress.model.layouts import Converted, Source
from vitcompress.model.naming import build_timm

_STEM = "embedding/kernel"
# In the order that timm asks for them.
_PREFIXES = ("opt/target/", "params/", "params/img/", "")
_BLOCK = "Transformer/encoderblock"


def matches(source: Source) -> bool:
    return any(prefix + _STEM in source.tensors for prefix in _PREFIXES)


def convert(source: Source) -> Converted:
    """timm reads the arrays, without pickle, into a model of the sizes that they have."""
    prefix = next(prefix for prefix in _PREFIXES if prefix + _STEM in source.tensors)
    own = {k.removeprefix(prefix): t for k, t in source.tensors.items() if k.startswith(prefix)}
    if any(key.startswith("pre_logits/") for key in own):
        raise InputError(
            f"{source.place}: has a representation layer (pre_logits), which timm has not;"
            " give a checkpoint without it"
        )
    try:
        options = _options(own, source.place)
    except (LookupError, ValueError) as error:
        raise InputError(
            f"{source.place}: taken for a ViT of JAX, but lacks or misshapes {one_line(error)};"
            " give the whole model"
        ) from error
    pooled = options.get("global_pool") == "map"
    name = "vit_base_patch16_siglip_224" if pooled else "vit_base_patch16_224"
    tensors = _read_by_timm(build_timm(name, options, source.place), source)
    if sum(t.numel() for t in tensors.values()) != sum(t.numel() for t in own.values()):
        raise InputError(
            f"{source.place}: taken for a ViT of JAX, and holds more or less than one has;"
            " give the checkpoint of a plain ViT"
        )
    beside = len(own) < len(source.tensors)
    return Converted(
        timm=name,
        tensors=tensors,
        options=options,
        notes=(f"only what is below {prefix} is taken",) if beside else (),
    )


def _read_by_timm(model: nn.Module, source: Source) -> dict[str, Tensor]:
    file = io.BytesIO()
    arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in source.tensors.items()}
    np.savez(file, **arrays)
    file.seek(0)
    load: Any = model.load_pretrained
    try:
        load(file)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{source.place}: taken for a ViT of JAX, and does not fit one: {one_line(error)};"
            " give the whole model"
        ) from error
    return model.state_dict()


def _options(own: Mapping[str, Tensor], place: str) -> dict[str, Any]:
    """Of timm's constructor, by the shapes. Raises `LookupError` and `ValueError` otherwise."""
    patch, _, channels, width = own[_STEM].shape
    stacked = f"{_BLOCK}/LayerNorm_0/scale" in own
    numbers = [int(m[1]) for key in own if (m := re.match(_BLOCK + r"_(\d+)/", key))]
    depth = len(own[f"{_BLOCK}/LayerNorm_0/scale"]) if stacked else max(numbers) + 1
    block = f"{_BLOCK}/" if stacked else f"{_BLOCK}_0/"
    query = next(k for k in sorted(own) if k.startswith(block) and k.endswith("query/kernel"))
    hidden = next(k for k in sorted(own) if k.startswith(block) and k.endswith("Dense_0/kernel"))
    position = own.get("Transformer/posembed_input/pos_embedding")
    positions = (own["pos_embedding"] if position is None else position).shape[1]
    has_class = "cls" in own
    beside = has_class and math.isqrt(positions) ** 2 != positions
    side = math.isqrt(positions - beside)
    if side**2 != positions - beside:
        raise InputError(
            f"{place}: its {positions} positions are no square grid of patches;"
            " give a checkpoint of square images"
        )
    pool = "token" if has_class else "map" if "MAPHead_0/probe" in own else "avg"
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": width,
        "depth": depth,
        "num_heads": own[query].shape[-2],
        "mlp_ratio": own[hidden].shape[-1] / width,
        "class_token": has_class,
        "no_embed_class": has_class and not beside,
        "global_pool": pool,
        "fc_norm": False,
        "num_classes": len(own["head/bias"]) if "head/bias" in own else 0,
    }
