"""Tensors that lie in files, which the system may take out of memory while nobody reads them.

A file takes the place of memory that is short, at the price of reading it again: of a model, that
is a small share of what computing with it costs.
"""

import copy
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from tempfile import gettempdir
from typing import TypeVar

import torch
from torch import Tensor, nn

from vitcompress.claims import scratch
from vitcompress.errors import RunError

_LEAST = 1 << 16  # bytes: less is not worth a file

Room = Callable[[Tensor], Tensor]
"""Where a tensor is kept: takes one, and gives its like of equal values."""

_Module = TypeVar("_Module", bound=nn.Module)


def in_memory(tensor: Tensor) -> Tensor:
    """`tensor` itself."""
    return tensor


def on_disk(tensor: Tensor) -> Tensor:
    """`tensor` in a temporary file, on the CPU; itself where it is in one, or small.

    The file goes when the tensor does. Raises `RunError` where there is no room on the disk.
    """
    return tensor if tensor.nbytes < _LEAST or lies_on_disk(tensor) else _filed(tensor)


def lies_on_disk(tensor: Tensor) -> bool:
    """Whether `tensor` is in a file."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().filename is not None


def _filed(tensor: Tensor) -> Tensor:
    """A copy of `tensor` in a file."""
    values = tensor.detach().cpu().contiguous()
    try:
        with scratch() as home:
            file = home / "tensor"
            file.write_bytes(values.flatten().view(torch.uint8).numpy().data)
            found = torch.from_file(str(file), shared=True, size=tensor.numel(), dtype=tensor.dtype)
    except OSError as error:
        raise RunError(
            f"--low-memory: {gettempdir()}: {error.strerror}; let TMPDIR name a folder on a "
            "larger disk"
        ) from None
    return found.view(tensor.shape)


def move_to(module: nn.Module, room: Room) -> None:
    """Let all tensors of `module` lie in `room` (in place). Raises as that does."""
    for tensor in _tensors(module):
        tensor.data = room(tensor)


def copied(module: _Module) -> _Module:
    """A copy of `module`, whose tensors lie where those of `module` do. Raises as `on_disk`."""
    there = {id(t): t for t in _tensors(module) if lies_on_disk(t)}
    files = {key: _like(tensor) for key, tensor in there.items()}
    return copy.deepcopy(module, dict(files))


def _like(tensor: Tensor) -> Tensor:
    values = _filed(tensor)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=tensor.requires_grad)
    return values


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def give_back() -> None:
    """Give the system the free memory that glibc would keep for this process."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
