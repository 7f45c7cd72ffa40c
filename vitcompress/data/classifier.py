"""Zero-shot classifiers: a file with one embedding a class, such as a text tower makes of names."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vitcompress.data.arrays import read_arrays
from vitcompress.errors import InputError
from vitcompress.foreign import check_regular, reading


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
    check_regular(path)
    with reading(f"data.classifier: {path}", "cannot be read", "make it again"):
        if path.suffix == ".npy":
            with path.open("rb") as file:
                (array,) = read_arrays(file, path.stat().st_size).values()
            return torch.from_numpy(array)
        tensors: dict[str, Tensor] = load_file(path)
    if len(tensors) != 1:
        raise InputError(
            f"data.classifier: {path}: holds {len(tensors)} tensors; give a file with one, "
            "[classes, width]"
        )
    return next(iter(tensors.values()))
