"""From where each thing that is known of a checkpoint came, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcompress.model.checkpoint import ModelSpec
from vitcompress.model.layouts import Converted, Source

_FIELDS = ("input_size", "mean", "std", "crop_pct", "interpolation", "crop_mode")
_DESCRIBED = {"timm": "config.json", "open_clip": "open_clip_config.json"}
"""By layout, the file of a folder that says how images are prepared."""


@dataclass(frozen=True)
class Reading:
    """How a checkpoint was read.

    `layout`: whose names its tensors had. `dtypes`: how many tensors of each type are stored.
    `origins`: by what is known (layout, name, task, and each field of the preprocessing), whence.
    """

    layout: str
    dtypes: Mapping[str, int]
    origins: Mapping[str, str]


def reading(
    source: Source, layout: str, converted: Converted, spec: ModelSpec, given: Mapping[str, Any]
) -> Reading:
    """How `source`, of `layout`, was read as the model of `spec`; `given`: what the recipe says, by
    its keys."""
    return Reading(
        layout,
        source.dtypes,
        {
            "layout": _of_layout(source, layout),
            "name": _of_name(source, layout, converted, spec.timm, given),
            "task": _of_task(layout, converted, given),
            **_of_preprocessing(source, layout, converted, spec, given),
        },
    )


def of_timm(given: Mapping[str, Any]) -> dict[str, str]:
    """Whence the fields of the preprocessing are where no checkpoint says them."""
    told = {key: f"data.{key}" for key in _FIELDS if given.get(f"data.{key}") is not None}
    return dict.fromkeys(_FIELDS, "timm's default for this name") | told


def _of_layout(source: Source, layout: str) -> str:
    if (kind := source.config.get("model_type")) and layout.startswith("transformers"):
        return f"model_type of config.json: {kind}"
    if layout == "timm":
        described = "architecture" in source.config
        return "architecture of config.json" if described else "no other layout has such names"
    return "the names of its tensors"


def _of_name(
    source: Source, layout: str, converted: Converted, name: str, given: Mapping[str, Any]
) -> str:
    if given.get("model.name"):
        return "model.name"
    if converted.timm is not None:
        is_said = source.config and layout in _DESCRIBED
        return _DESCRIBED[layout] if is_said else f"the layout {layout}"
    is_named = name.partition(".")[0] in Path(source.place).name.lower()
    return "the name of the file" if is_named else "the shapes of its tensors"


def _of_task(layout: str, converted: Converted, given: Mapping[str, Any]) -> str:
    if given.get("model.output"):
        return "model.output"
    return "the number of outputs" if converted.task is None else f"the layout {layout}"


def _of_preprocessing(
    source: Source, layout: str, converted: Converted, spec: ModelSpec, given: Mapping[str, Any]
) -> dict[str, str]:
    if source.processor:
        said = "preprocessor_config.json"
    elif source.config and layout in _DESCRIBED:
        said = _DESCRIBED[layout]
    else:
        said = f"usual for the layout {layout}"
    found = of_timm(given)
    asked = {key for key, origin in found.items() if origin.startswith("data.")}
    if "img_size" in spec.options:
        found["input_size"] = "the shapes of its tensors"
    found |= {key: said for key in converted.preprocess if key not in asked}
    if given.get("model.options.img_size"):
        found["input_size"] = "model.options.img_size"
    return found | {key: f"data.{key}" for key in asked}
