"""Kinds of files that hold tensors, and which file of a folder does."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from vitcompress import paths
from vitcompress.data.arrays import BFLOAT16, read_arrays
from vitcompress.errors import InputError
from vitcompress.foreign import check_regular, reading, text_of
from vitcompress.model.reading.pickles import read_pickle

INDEX = ".index.json"
# In this order: the hub's folders of open_clip may hold the same model in two layouts.
STANDARD = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")
# What trainers write into the folder of a model, with suffixes of checkpoints.
_BESIDE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)\w*\.\w+$")


def file_of(path: Path) -> Path:
    """The file, or the index of shards, that holds the tensors of the file or folder `path`.

    Raises `InputError` where there is none that can be read, or a folder holds several.
    """
    file = _file_in(path) if paths.is_folder(path) else path
    if not paths.exists(file):
        raise InputError(f"{file}: no such file; check the path of the checkpoint")
    check_regular(file)
    if not os.access(file, os.R_OK):
        raise InputError(f"{file}: may not be read; check its permissions")
    if not is_index(file) and file.suffix.lower() not in _READERS:
        kinds = " ".join(_READERS)
        raise InputError(f"{file}: not a known kind of checkpoint; give one of {kinds}")
    if _SHARD.search(file.name) and "-00001-of-00001." not in file.name:
        raise InputError(f"{file}: one shard of several; give the folder that holds all of them")
    return file


def is_index(file: Path) -> bool:
    return file.name.endswith(INDEX)


def _file_in(folder: Path) -> Path:
    for name in STANDARD:
        for file in (folder / name, folder / (name + INDEX)):
            if file.is_file():
                return file
    found = sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.suffix.lower() in _READERS and not _BESIDE.match(file.name)
    )
    if any(_SHARD.search(file.name) for file in found):
        raise InputError(f"{folder}: holds shards without their index ({STANDARD[0] + INDEX})")
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4]) + (", …" if len(found) > 4 else "")
        raise InputError(f"{folder}: holds several checkpoints ({names}); give one of them")
    if not found:
        raise InputError(
            f"{folder}: holds neither {' nor '.join(STANDARD[:2])}, and no other checkpoint;"
            " give a checkpoint file"
        )
    return found[0]


def read_file(file: Path) -> Any:
    """What `file`, found by `file_of`, holds. Raises `InputError` where it is damaged or unsafe."""
    return _read_shards(file) if is_index(file) else _READERS[file.suffix.lower()](file)


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; nothing where there is no such file.

    Raises `InputError` where it holds something else.
    """
    if not paths.is_file(file):
        return {}
    text = text_of(file, "mend it")
    with reading(file, "not readable as JSON", "mend it"):
        found = json.loads(text)
    if not isinstance(found, dict):
        raise InputError(f"{file}: not a JSON object; give the file that belongs to the model")
    return found


def _read_shards(index: Path) -> dict[str, Tensor]:
    shards = json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(map(_is_shard, shards.values())):
        raise InputError(f"{index}: its weight_map names no shards beside it; download it again")
    files = [index.parent / name for name in sorted(set(shards.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise InputError(f"{index}: {missing[0]}{more} missing; copy or download the whole folder")
    found: dict[str, Tensor] = {}
    for file in files:
        check_regular(file)
        content = _READERS[file.suffix.lower()](file)
        found |= content if isinstance(content, Mapping) else {}
    if absent := [key for key in shards if key not in found]:
        raise InputError(f"{index}: no shard holds {absent[0]}; copy or download the folder again")
    return found


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and Path(name).suffix in _READERS


def _read_safetensors(path: Path) -> Any:
    with reading(path, "truncated or not safetensors", "copy or download it again"):
        return load_file(path)


def _read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of numbers; those of two bytes without a type are bfloat16, as JAX writes it."""
    problem, remedy = "truncated or not a .npz of numbers", "copy or download it again"
    with reading(path, problem, remedy), path.open("rb") as file:
        arrays = read_arrays(file, path.stat().st_size)
        return {key: _tensor(array) for key, array in arrays.items() if array is not None}


def _tensor(array: NDArray[Any]) -> Tensor:
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar"), read_pickle),
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}
