"""Files of checkpoints, read without running what they contain."""

import argparse
import json
import os
import pickle
import pickletools
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitcompress.errors import InputError
from vitcompress.model.layouts import Source
from vitcompress.model.naming import one_line

_PICKLED = (".pth", ".pt", ".bin", ".ckpt")
# In this order: the hub's folders of open_clip may hold the same model in two layouts.
_IN_FOLDER = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)

# Where training scripts put the state dict; the moving average first, since it is what they report.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model",
    "model_state_dict",
    "module",
)
_PREFIXES = ("module.", "model.", "net.", "network.", "backbone.")
# What a Lightning module or an averaged model keeps beside the model itself.
_TRAINING_ONLY = re.compile(
    r"(criterion|\w*loss\w*|ema(_\w+)?|\w+_ema|teacher\w*|\w*metrics?|\w*acc(uracy)?)\.|n_averaged$"
)

_RESAVE = (
    "re-save only the state dict: torch.save(model.state_dict(), 'model.pth'), or as safetensors"
)
# What torch.load raises on bytes that are not, or not all of, a checkpoint.
_BROKEN = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_source(path: Path) -> Source:
    """Return a checkpoint's tensors, and what the folder that it is or lies in says of it.

    Raises `InputError` as `read_state_dict`, and for descriptions that are no JSON objects.
    """
    tensors = read_state_dict(path)
    file = _file_in(path)
    home = file.parent if file.name in _IN_FOLDER else path
    described = "open_clip_config.json" if file.name.startswith("open_clip_") else "config.json"
    return Source(
        place=str(path),
        tensors=tensors,
        config=_described(home / described),
        processor=_processor(home),
    )


def _file_in(path: Path) -> Path:
    """The checkpoint in the folder `path`; `path` itself where it is a file, or there is none."""
    return next((path / name for name in _IN_FOLDER if (path / name).is_file()), path)


def _processor(home: Path) -> dict[str, Any]:
    """What is said of images in a folder of transformers, on its own or beside that of texts."""
    if alone := _described(home / "preprocessor_config.json"):
        return alone
    beside = _described(home / "processor_config.json").get("image_processor")
    return beside if isinstance(beside, dict) else {}


def _described(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; nothing where there is no such file."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON: {one_line(error)}; mend it") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: not a JSON object; give the file that belongs to the model")
    return found


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the model's tensors in a checkpoint file, or in a Hugging Face or timm folder.

    Wrappers of training scripts (`state_dict`, `model`, …) are opened, a moving average preferred,
    and the prefixes that wrapped modules leave (`module.`, `_orig_mod.`, `model.`, …) taken off.
    Floating-point tensors become float32. Nothing in the file is executed.

    Raises `InputError` when the file is missing, of no known kind, damaged, needs more than plain
    data to be unpickled, or holds no state dict.
    """
    path = _file_in(path)
    if path.is_dir():
        raise InputError(
            f"{path}: holds neither {' nor '.join(_IN_FOLDER)}; give a checkpoint file"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path of the checkpoint")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: may not be read; check its permissions")
    if path.suffix.lower() == ".safetensors":
        content: Any = _read_safetensors(path)
    elif path.suffix.lower() in _PICKLED:
        content = _read_pickle(path)
    else:
        kinds = " ".join((*_PICKLED, ".safetensors"))
        raise InputError(f"{path}: not a known kind of checkpoint; give one of {kinds}")
    state = _strip(_tensors(_unwrap(content)))
    if not state:
        keys = ", ".join(map(str, content))[:120] if isinstance(content, Mapping) else ""
        held = f"keys: {keys}" if keys else f"a {type(content).__name__}"
        raise InputError(f"{path}: holds no state dict ({held}); {_RESAVE}")
    return {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: truncated or not safetensors ({one_line(error)}); copy or download it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        # Namespace is plain data: timm's training script stores its arguments in one.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        if "TorchScript" in str(error):
            raise InputError(f"{path}: a TorchScript archive; {_RESAVE}") from error
        named = re.search(r"GLOBAL (\S+)", str(error))
        if refused := named[1] if named else _first_type(path):
            raise InputError(
                f"{path}: holds a pickled {refused}, which could run code and is not loaded;"
                f" {_RESAVE}"
            ) from error
        raise InputError(
            f"{path}: truncated or not a torch checkpoint; copy or download it again, or {_RESAVE}"
        ) from error


def _first_type(path: Path) -> str | None:
    """The first type or function that a bare pickle names, found without executing it."""
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if operation.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, EOFError, UnicodeDecodeError):
        pass  # no pickle, or a damaged one
    return None


def _unwrap(content: Any, depth: int = 4) -> Any:
    """Return the innermost mapping that a training script wrapped up, at most `depth` deep."""
    if isinstance(content, Mapping) and depth:
        for key in _WRAPPERS:
            if _tensors(inner := _unwrap(content.get(key), depth - 1)):
                return inner
    return content


def _tensors(content: Any) -> dict[str, Tensor]:
    items = content.items() if isinstance(content, Mapping) else ()
    return {key: v for key, v in items if isinstance(key, str) and isinstance(v, Tensor)}


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that all tensors of the model share, and what only training needs."""
    state = {key.replace("_orig_mod.", ""): tensor for key, tensor in state.items()}
    model = [key for key in state if not _TRAINING_ONLY.match(key)]
    for prefix in _PREFIXES:
        if model and all(key.startswith(prefix) for key in model):
            return _strip({key.removeprefix(prefix): state[key] for key in model})
    return state
