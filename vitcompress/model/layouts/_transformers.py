"""What folders of the transformers library say beside the tensors, whatever the model."""

from collections.abc import Mapping
from typing import Any

from vitcompress.errors import InputError
from vitcompress.model.layouts import Source
from vitcompress.model.layouts._renaming import setting

# Pillow's numbers for its filters.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}


def activation(source: Source, config: Mapping[str, Any]) -> str:
    """timm's name of `hidden_act`."""
    name = setting(config, "hidden_act", str, "gelu", source.place)
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise InputError(
            f"{source.place}: hidden_act {name!r} of its config.json is none of {known}"
        )
    return _ACTIVATIONS[name]


def check_activation(source: Source, only: str) -> None:
    """Raise `InputError` for another `hidden_act` than the one that timm has for this model."""
    if source.config and (name := activation(source, source.config)) != only:
        raise InputError(
            f"{source.place}: hidden_act {name!r} of its config.json is not supported for"
            f" {source.config.get('model_type', 'this model')}, only {only}; give another model"
        )


def lengths(source: Source, key: str, default: int) -> int | list[int]:
    """`image_size` and the like: a side, or height and width. Raises `InputError`."""
    found = source.config.get(key)
    if found is None:
        return default
    sides = found if isinstance(found, list) else [found]
    if not all(type(side) is int and side > 0 for side in sides) or len(sides) > 2:
        raise InputError(
            f"{source.place}: {key} of its config.json is {found!r}, no side, nor height and"
            " width; correct it there"
        )
    return sides[0] if len(set(sides)) == 1 else sides


def assumed(source: Source, **facts: Any) -> tuple[str, ...]:
    """What is to be said of `facts`, options that no shapes tell, where no config.json does."""
    if source.config or not facts:
        return ()
    said = " and ".join(f"{key} {value}" for key, value in facts.items())
    remedy = " ".join(f"--set model.options.{key}=…" for key in facts)
    return (
        f"{source.place}: no config.json beside it, hence assumed: {said}; where it was made with"
        f" others, {remedy}",
    )


def class_names(source: Source) -> tuple[str, ...] | None:
    """The names in `id2label` in the order of the outputs; None where they are only numbered."""
    labels = source.config.get("id2label")
    if not isinstance(labels, Mapping) or not labels:
        return None
    try:
        names = tuple(str(name) for _, name in sorted((int(k), v) for k, v in labels.items()))
    except ValueError as error:
        raise InputError(
            f"{source.place}: id2label of its config.json has keys that are no numbers"
        ) from error
    return None if names == tuple(f"LABEL_{n}" for n in range(len(names))) else names


def preprocess(source: Source) -> dict[str, Any]:
    """Fields of `Preprocess` from preprocessor_config.json; nothing where there is none.

    Raises `InputError` for steps that have no counterpart there.
    """
    said = source.processor
    if not said:
        return {}
    found: dict[str, Any] = {}
    if said.get("do_resize", True):
        resample = said.get("resample", 2)
        if resample not in range(len(_FILTERS)):
            raise InputError(
                f"{source.place}: resample {resample!r} of preprocessor_config.json is"
                f" no filter; give a number from 0 to {len(_FILTERS) - 1}"
            )
        found["interpolation"] = _FILTERS[resample]
    found |= _sizes(source)
    scale = 255 * said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 255.0
    mean, std = said.get("image_mean"), said.get("image_std")
    if not said.get("do_normalize", True) or mean is None or std is None:
        mean, std = [0.0] * 3, [1.0] * 3
    # Pixels are taken as 0…1 times `scale` there, and as 0…1 here.
    return found | {"mean": [m / scale for m in mean], "std": [s / scale for s in std]}


def _sizes(source: Source) -> dict[str, Any]:
    said = source.processor
    size, crop = _size(said.get("size")), _size(said.get("crop_size"))
    cropped = bool(said.get("do_center_crop", crop is not None)) and crop is not None
    if size is None or not said.get("do_resize", True):
        return {"input_size": crop, "crop_pct": 1.0} if cropped and crop else {}
    if isinstance(part := said.get("crop_pct"), float):  # of ConvNeXt, which crops small images
        cut = {"crop_pct": part, "crop_mode": "center"}
        whole = {"crop_pct": 1.0, "crop_mode": "squash"}
        return {"input_size": size, **(cut if min(size) < 384 else whole)}
    shortest = isinstance(said.get("size"), Mapping) and "shortest_edge" in said["size"]
    if not cropped or crop is None:
        mode = "center" if shortest else "squash"
        return {"input_size": size, "crop_pct": 1.0, "crop_mode": mode}
    if crop[0] > size[0] or crop[1] > size[1]:
        raise InputError(
            f"{source.place}: preprocessor_config.json crops {crop} out of {size};"
            " correct crop_size there"
        )
    mode = "center" if shortest else "squash"
    return {"input_size": crop, "crop_pct": crop[0] / size[0], "crop_mode": mode}


def _size(value: Any) -> tuple[int, int] | None:
    """Height and width of what `size` and `crop_size` may be."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping):
        if isinstance(edge := value.get("shortest_edge"), int):
            return edge, edge
        if isinstance(value.get("height"), int) and isinstance(value.get("width"), int):
            return value["height"], value["width"]
    return None
