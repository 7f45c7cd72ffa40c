"""Zero-shot classifiers: a file with one embedding a class, such as a text tower makes of names."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitcompress.errors import InputError


def read_classifier(path: Path, width: int) -> Tensor:
    """The class embeddings of a .npy or .safetensors file, float32 [classes, width].

    Raises `InputError` for another file, and for embeddings of another width than the model's.
    """
    found = _only_tensor(path)
    if found.ndim != 2 or not found.is_floating_point() or len(found) < 2:
        raise InputError(
            f"data.classifier: {path}: holds {str(found.dtype).removeprefix('torch.')} "
            f"{list(found.shape)}; give floats [classes, width], two classes or more"
        )
    if found.shape[1] != width:
        raise InputError(
            f"data.classifier: {path}: its class embeddings have {found.shape[1]} values and those "
            f"of the model {width}; give the ones made for this model and this model.output"
        )
    found = found.float()
    if not found.isfinite().all() or not found.any(1).all():
        raise InputError(
            f"data.classifier: {path}: holds a class of zeros, NaN or infinity; make it again"
        )
    return found


def _only_tensor(path: Path) -> Tensor:
    if path.suffix not in (".npy", ".safetensors"):
        raise InputError(f"data.classifier: {path}: give a .npy or .safetensors file")
    try:
        if path.suffix == ".npy":
            found: Tensor = torch.from_numpy(np.load(path, allow_pickle=False))
            return found
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, EOFError, ValueError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"data.classifier: {path}: cannot be read: {reason}") from error
    if len(tensors) != 1:
        raise InputError(
            f"data.classifier: {path}: holds {len(tensors)} tensors; give a file with one, "
            "[classes, width]"
        )
    return next(iter(tensors.values()))
