"""timm's own layout: state dicts, and the folders that it writes for the Hugging Face hub."""

from collections.abc import Mapping
from typing import Any

from vitcompress.errors import InputError
from vitcompress.model.layouts import Converted, Source
from vitcompress.model.naming import is_known
from vitcompress.model.options import check_options

_PREPROCESS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


def matches(source: Source) -> bool:
    return "architecture" in source.config


def convert(source: Source) -> Converted:
    """The tensors stay as they are; timm writes what model they are of, and how it is used."""
    config = source.config
    if (kind := config.get("model_type")) and all(t.ndim < 4 for t in source.tensors.values()):
        raise InputError(
            f"{source.place}: model_type {str(kind)!r} of its config.json: none of its tensors"
            " reads images; give a model of images (vitcompress models lists the layouts)"
        )
    cfg, options = _object(source, "pretrained_cfg"), _object(source, "model_args")
    check_options(options, f"{source.place}: model_args of its config.json")
    name = config.get("architecture")
    if isinstance(name, str) and is_known(f"{name}.{cfg.get('tag')}"):
        name = f"{name}.{cfg['tag']}"
    labels = config.get("label_names")
    size = cfg.get("input_size")
    sized = {"input_size": size[1:]} if isinstance(size, list) and len(size) == 3 else {}
    return Converted(
        timm=name if isinstance(name, str) else None,
        tensors=source.tensors,
        options=options,
        preprocess={key: cfg[key] for key in _PREPROCESS if cfg.get(key) is not None} | sized,
        classes=tuple(map(str, labels)) if isinstance(labels, list) and labels else None,
    )


def _object(source: Source, key: str) -> Mapping[str, Any]:
    found = source.config.get(key) or {}
    if not isinstance(found, dict):
        raise InputError(
            f"{source.place}: {key} of its config.json is no JSON object; correct it there"
        )
    return found
