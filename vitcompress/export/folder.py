"""The output folder as a model: safetensors and config.json, written and read again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitcompress import paths, tasks
from vitcompress.data.preprocess import Preprocess
from vitcompress.errors import InputError
from vitcompress.foreign import check_regular, reading, text_of
from vitcompress.model.architecture import (
    Architecture,
    VitModel,
    build,
    load_tensors,
    stored_tensors,
)
from vitcompress.model.naming import check_parameters
from vitcompress.registry import OneOf

SAFETENSORS, CONFIG = "model.safetensors", "config.json"
_DENSE_VALUES = 25  # of a model, at most, to a byte of what is left of it
FORMAT = 2  # of config.json and what it says of the tensors


class Config(BaseModel):
    """What config.json holds: all that is needed beside the tensors.

    `task`: what the output means (None: what the number of outputs suggests). `class_names`: of all
    outputs, where they are known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    architecture: Architecture
    preprocessing: Preprocess
    task: Annotated[str, OneOf(tasks.PACKAGE)] | None = None
    class_names: tuple[str, ...] | None = None


def save_folder(model: VitModel, folder: Path) -> None:
    """Write model.safetensors and config.json; the same model always gives the same bytes."""
    config = Config(
        architecture=model.architecture,
        preprocessing=model.preprocess,
        task=model.task.name,
        class_names=model.class_names,
    )
    write_tensors(stored_tensors(model), folder / SAFETENSORS)
    text = json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a file of safetensors, without a copy in memory. Raises `OSError` where that fails."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:  # which is no OSError, whatever went wrong
        raise OSError(str(error)) from error


def load_folder(folder: Path) -> VitModel:
    """Read what `save_folder` wrote.

    Raises `InputError` when a file is missing, damaged or of another version.
    """
    for name in (CONFIG, SAFETENSORS):
        if not paths.is_file(folder / name):
            raise InputError(f"{folder}: no readable {name}; give the folder a run wrote")
        check_regular(folder / name)
    text = text_of(folder / CONFIG, "run again")
    try:
        config = Config.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{folder / CONFIG}: {where}: {first['msg']}; run again") from error
    with reading(folder / SAFETENSORS, "damaged", "run again"):
        tensors = load_file(folder / SAFETENSORS)
    if config.format != FORMAT:
        raise InputError(
            f"{folder / CONFIG}: format {config.format}; this version reads {FORMAT}; run again"
        )
    with reading(folder / CONFIG, "describes no model", "run again"):
        spec, stored = config.architecture, (folder / SAFETENSORS).stat().st_size
        check_parameters(spec.timm, spec.options, _DENSE_VALUES * stored, str(folder / CONFIG))
        module = build(config.architecture)
    with reading(folder / SAFETENSORS, f"does not fit {CONFIG}", "run again"):
        load_tensors(module, config.architecture, tensors)
    names = config.class_names
    try:
        model = VitModel(module, config.architecture, config.preprocessing, class_names=names)
        if names is not None and len(names) != model.num_classes:
            raise InputError(f"{len(names)} class names, {model.num_classes} outputs; run again")
        return model.with_task(config.task)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error


def stored_bytes(model: VitModel) -> int:
    """Bytes of all tensors as they are written, without the file formats around them."""
    return sum(tensor.nbytes for tensor in stored_tensors(model).values())
