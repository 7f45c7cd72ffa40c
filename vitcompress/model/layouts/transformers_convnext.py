"""transformers: ConvNeXt and ConvNeXt V2, the models, and those for image classification."""

import re

from vitcompress.errors import InputError
from vitcompress.model.layouts import Converted, Source
from vitcompress.model.layouts._renaming import blocks_in, needed, renamed, setting
from vitcompress.model.layouts._transformers import activation, class_names, preprocess

_START = r"(?:convnext\.|convnextv2\.)?"
_STAGE = _START + r"encoder\.stages\.(\d+)\."
_BLOCK = _STAGE + r"layers\.(\d+)\."
_RULES = (
    (_START + r"embeddings\.patch_embeddings\.(.+)", r"stem.0.\1"),
    (_START + r"embeddings\.layernorm\.(.+)", r"stem.1.\1"),
    (_STAGE + r"downsampling_layer\.(.+)", r"stages.\1.downsample.\2"),
    (_BLOCK + r"dwconv\.(.+)", r"stages.\1.blocks.\2.conv_dw.\3"),
    (_BLOCK + r"layernorm\.(.+)", r"stages.\1.blocks.\2.norm.\3"),
    (_BLOCK + r"pwconv([12])\.(.+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
    (_BLOCK + r"grn\.(.+)", r"stages.\1.blocks.\2.mlp.grn.\3"),
    (_BLOCK + r"layer_scale_parameter", r"stages.\1.blocks.\2.gamma"),
    (_START + r"layernorm\.(.+)", r"head.norm.\1"),
    (r"classifier\.(.+)", r"head.fc.\1"),
)
_FIRST = re.compile(_START + r"encoder\.stages\.0\.layers\.0\.dwconv\.weight")
_STAGES = 4
_PATCH = 4
_EPS = 1e-6  # of all normalisations but the last one there, and of all here


def matches(source: Source) -> bool:
    kind = source.config.get("model_type")
    if kind:
        return kind in ("convnext", "convnextv2")
    return any(map(_FIRST.fullmatch, source.tensors))


def convert(source: Source) -> Converted:
    place = source.place
    tensors = {
        key: tensor.flatten() if ".grn." in key else tensor
        for key, tensor in renamed(source.tensors, _RULES, place, "transformers ConvNeXt").items()
    }
    if (stages := blocks_in(tensors, r"stages\.(\d+)\.")) != _STAGES:
        raise InputError(
            f"{place}: a ConvNeXt of {stages} stages; timm has those of {_STAGES} only"
        )
    second = "stages.0.blocks.0.mlp.grn.weight" in tensors
    stem = needed(tensors, "stem.0.weight", 4, place)
    if (patch := stem.shape[2]) != _PATCH:
        raise InputError(f"{place}: a ConvNeXt with patches of {patch}; timm has those of {_PATCH}")
    eps = setting(source.config, "layer_norm_eps", float, 1e-12, place)
    return Converted(
        timm="convnextv2_tiny" if second else "convnext_tiny",
        tensors=tensors,
        options={
            "in_chans": stem.shape[1],
            "depths": [
                blocks_in(tensors, rf"stages\.{n}\.blocks\.(\d+)\.") for n in range(_STAGES)
            ],
            "dims": [
                len(needed(tensors, f"stages.{n}.blocks.0.conv_dw.weight", 4, place))
                for n in range(_STAGES)
            ],
            "act_layer": activation(source, source.config),
            "num_classes": len(tensors["head.fc.weight"]) if "head.fc.weight" in tensors else 0,
        },
        preprocess=preprocess(source),
        classes=class_names(source),
        notes=()
        if eps == _EPS
        else (f"the last normalisation has an epsilon of {_EPS:g} here, of {eps:g} there",),
    )
