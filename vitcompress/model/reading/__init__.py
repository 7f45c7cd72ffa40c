"""Files of checkpoints, read without running what they contain."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcompress import paths
from vitcompress.console import note
from vitcompress.errors import InputError
from vitcompress.foreign import check_expansion, reading
from vitcompress.lines import printable
from vitcompress.model.layouts import Source, layout_of
from vitcompress.model.reading.files import (
    INDEX,
    STANDARD,
    file_of,
    is_index,
    json_object,
    read_file,
)
from vitcompress.model.reading.lora import merged
from vitcompress.model.reading.pickles import RESAVE
from vitcompress.model.reading.prefixes import unprefixed
from vitcompress.model.reading.unwrapping import unwrap


def read_source(path: Path, key: str | None = None) -> Source:
    """Return the model's tensors in a checkpoint, a file or a folder of one, and what the folder
    says of it.

    What training scripts wrap the tensors in is opened, adapters are merged, and prefixes that all
    tensors share and no layout knows are taken off. `key` says which of several models is meant,
    as in `unwrap`. Floating-point tensors become float32. Nothing in the file is executed.

    Raises `InputError` when the file is missing, of no known kind, damaged, needs more than plain
    data to be unpickled, holds no state dict or several, or tensors that are no plain floats.
    """
    file = file_of(path)
    is_described = paths.is_folder(path) or file.name.removesuffix(INDEX) in STANDARD
    home = file.parent if is_described else file
    description = "open_clip_config" if file.name.startswith("open_clip_") else "config"
    config = json_object(home / f"{description}.json")
    processor = _processor(home)

    content = read_file(file)
    problem, remedy = "holds tensors of a kind that is not read", "save them as dense floats"
    with reading(file, problem, remedy):
        state = unwrap(content, key, str(file))
    if not state:
        raise InputError(f"{file}: holds no state dict ({_held(content)}); {RESAVE}")
    with reading(file, problem, remedy):
        _check_plain(state, str(file))
        _check_held(state, file)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())
    beside = content if isinstance(content, Mapping) else {}
    adapter = json_object(file.parent / "adapter_config.json") or beside

    def known(tensors: Mapping[str, Tensor]) -> bool:
        return layout_of(Source(str(path), tensors, config, processor)) != "timm"

    state = unprefixed(merged(state, adapter, str(file)), known, str(file))
    with reading(file, problem, remedy):
        floats = {k: t.float() if t.is_floating_point() else t for k, t in state.items()}
    return Source(str(path), floats, config, processor, dtypes)


def _processor(home: Path) -> dict[str, Any]:
    """What is said of images in a folder of transformers, on its own or beside that of texts."""
    if alone := json_object(home / "preprocessor_config.json"):
        return alone
    beside = json_object(home / "processor_config.json").get("image_processor")
    return beside if isinstance(beside, dict) else {}


def _held(content: Any) -> str:
    keys = printable(", ".join(map(str, content))[:120]) if isinstance(content, Mapping) else ""
    return f"keys: {keys}" if keys else f"a {type(content).__name__}"


def _check_plain(state: Mapping[str, Tensor], place: str) -> None:
    """Raise `InputError` for tensors that are no dense floats, and say which are coarse."""
    for key, tensor in state.items():
        if printable(key) != key:
            raise InputError(
                f"{place}: the name {printable(key)} has control characters; save it under another"
            )
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.is_nested or tensor.is_quantized or _is_expanded(tensor):
            raise InputError(
                f"{place}: {key} is sparse, quantized, expanded or without values;"
                " save it as a dense tensor of floats"
            )
        is_weight = key.rpartition(".")[2] == "weight" and tensor.ndim > 1
        if is_weight and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"{place}: {key} is of type {kind}, as codes of a quantized model are;"
                " give the checkpoint in floating point"
            )
    coarse = {t.dtype for t in state.values() if t.is_floating_point() and t.itemsize == 1}
    for name in sorted(str(dtype).removeprefix("torch.") for dtype in coarse):
        note(f"{place}: holds weights in 8 bits ({name}); they are taken as they are, as float32")


def _check_held(state: Mapping[str, Tensor], file: Path) -> None:
    """Raise `InputError` where the tensors have far more values than the file, or its shards."""
    storages = [tensor.untyped_storage() for tensor in state.values()]
    held = sum({each.data_ptr(): each.nbytes() for each in storages}.values())
    files = file.parent.iterdir() if is_index(file) else [file]
    with reading(file, "holds less than it says", RESAVE):
        check_expansion(held, sum(each.stat().st_size for each in files))


def _is_expanded(tensor: Tensor) -> bool:
    """Whether values are repeated: it takes more memory than the file let think."""
    return tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes()
