"""What folders of the transformers library say beside the tensors, whatever the model."""

import math
import re
from collections.abc import Mapping
from typing import Any

from vitcompress.errors import InputError
from vitcompress.model.layouts import Source
from vitcompress.model.layouts._renaming import setting

# Pillow's numbers for its filters.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# Processors that take one number as that of the shortest edge, not as a square.
_SHORTEST = ("Bit", "CLIP", "ChineseCLIP", "ConvNext", "Siglip")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}


def tower_config(source: Source) -> Mapping[str, Any]:
    """What the description says of the vision tower, alone or beside one for texts."""
    found: Mapping[str, Any] = setting(
        source.config, "vision_config", dict, source.config, source.place
    )
    return found


def activation(source: Source, config: Mapping[str, Any], usual: str = "gelu") -> str:
    """timm's name of `hidden_act`, which is `usual` where it is not said."""
    name = setting(config, "hidden_act", str, usual, source.place)
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


def without_config(source: Source, **facts: Any) -> tuple[str, ...]:
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
    if "max_num_patches" in source.processor:
        raise InputError(
            f"{source.place}: its preprocessor_config.json makes patches of images of any shape"
            " (NaFlex), which is not supported; give a checkpoint of one fixed resolution"
        )
    return {**_resizing(source), **_statistics(source)} if source.processor else {}


def _statistics(source: Source) -> dict[str, Any]:
    said = source.processor
    scale, offset = 255.0, 0.0
    if said.get("do_rescale", True):
        scale *= _numbers(source, "rescale_factor", [1 / 255])[0]
        offset = float(bool(said.get("rescale_offset", said.get("offset", False))))
    channels = setting(tower_config(source), "num_channels", int, 3, source.place)
    mean, std = [0.0] * channels, [1.0] * channels
    if said.get("do_normalize", True):
        found = (_numbers(source, key) for key in ("image_mean", "image_std"))
        mean, std = (each * channels if len(each) == 1 else each for each in found)
    # Pixels are taken as 0…1 times `scale` less `offset` there, and as 0…1 here.
    return {"mean": [(m + offset) / scale for m in mean], "std": [s / scale for s in std]}


def _numbers(source: Source, key: str, default: list[float] | None = None) -> list[float]:
    """The number or numbers in `key`, those of the rescaling above zero."""
    value = source.processor.get(key, default)
    found = value if isinstance(value, list) else [value]
    good = found and all(type(number) in (int, float) for number in found)
    if not good or (key == "rescale_factor" and found[0] <= 0):
        raise _fault(source, f"{key} is {value!r}")
    return [float(number) for number in found]


def _resizing(source: Source) -> dict[str, Any]:
    said = source.processor
    crops = bool(said.get("do_center_crop", "crop_size" in said))
    if not said.get("do_resize", True):
        if crops:
            raise _fault(source, "images are cropped but not resized")
        # It is left to the user there that images have the size of the model.
        return {"crop_pct": 1.0, "crop_mode": "squash"}
    resample = said.get("resample", 2 if _kind(source) == "ViT" else 3)
    if type(resample) is not int or resample not in range(len(_FILTERS)):
        raise _fault(source, f"resample is {resample!r}, no filter from 0 to {len(_FILTERS) - 1}")
    return {"interpolation": _FILTERS[resample], **_sizes(source, crops)}


def _sizes(source: Source, crops: bool) -> dict[str, Any]:
    size, shortest = _size(source, "size")
    crop = _size(source, "crop_size")[0] if crops else size
    if _kind(source) == "ConvNext":  # it crops small images, and squashes others
        share = _numbers(source, "crop_pct", [224 / 256])[0]
        shortest = size[0] < 384
        size = (int(size[0] / share),) * 2 if shortest else size
    found: dict[str, Any] = {
        "input_size": crop,
        "crop_pct": (share := _share(crop[0], size[0])),
        "crop_mode": "center" if shortest else "squash",
        "floor_crop": True,
        "float_resize": _kind(source) == "DINOv3ViT",  # it rescales before it resizes
    }
    if not 0 < share <= 1 or math.floor(crop[1] / share) != size[1]:
        raise _fault(source, f"{list(crop)} pixels are cropped out of {list(size)}")
    return found


def _share(crop: int, size: int) -> float:
    """The ratio that, rounded down as timm does it, makes `size` of `crop`."""
    share = crop / size
    return share if math.floor(crop / share) == size else math.nextafter(share, 0)


def _size(source: Source, key: str) -> tuple[tuple[int, int], bool]:
    """Height and width of what `size` and `crop_size` may be, and whether they are of the shortest
    edge, with the aspect ratio kept."""
    value = source.processor.get(key)
    if isinstance(value, int):
        return (value, value), key == "size" and _kind(source) in _SHORTEST
    sides = value if isinstance(value, Mapping) else {}
    given = {name for name in sides if sides[name] is not None}
    if given == {"shortest_edge"} and isinstance(edge := sides["shortest_edge"], int):
        return (edge, edge), True
    height, width = sides.get("height"), sides.get("width")
    if given == {"height", "width"} and isinstance(height, int) and isinstance(width, int):
        return (height, width), False
    raise _fault(source, f"{key} is {value!r}, which has no counterpart here")


def _kind(source: Source) -> str:
    """Of which model the processor is."""
    said = source.processor
    name = said.get("image_processor_type") or said.get("feature_extractor_type") or ""
    return re.sub(r"(ImageProcessor|FeatureExtractor).*", "", str(name))


def _fault(source: Source, what: str) -> InputError:
    return InputError(f"{source.place}: in its preprocessor_config.json {what}; correct it there")
