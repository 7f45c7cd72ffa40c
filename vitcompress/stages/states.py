"""States between the steps of a model in a file, so that memory does not grow with the images."""

from collections.abc import Hashable
from tempfile import TemporaryFile
from typing import NamedTuple
from weakref import finalize

import torch
from torch import Tensor

from vitcompress.model.anatomy import State


class _Kept(NamedTuple):
    """Where a tensor lies in the file, and how it lay in memory.

    `order`: its axes, from the outermost in memory; in another layout sums over a tensor may differ
    in their last bit.
    """

    offset: int
    shape: torch.Size
    order: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class StateFile:
    """States by any key, in a temporary file that goes with this object.

    A state can be put in the place of another; what has become larger moves to the end.
    """

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115
        self._states: dict[Hashable, dict[str, _Kept]] = {}
        self._rooms: dict[tuple[Hashable, str], tuple[int, int]] = {}  # offset and bytes
        self._end = 0
        self.close = finalize(self, self._file.close)

    def put(self, key: Hashable, state: State) -> None:
        tensors = {name: t for name, t in state._asdict().items() if t is not None}
        self._states[key] = {name: self._write((key, name), t) for name, t in tensors.items()}

    def get(self, key: Hashable) -> State:
        return State(**{name: self._read(kept) for name, kept in self._states[key].items()})

    def _write(self, key: tuple[Hashable, str], tensor: Tensor) -> _Kept:
        strides = tensor.stride()
        order = tuple(sorted(range(tensor.ndim), key=lambda axis: -strides[axis]))
        values = tensor.detach().permute(order).contiguous().cpu()
        offset = self._room(key, values.numel() * values.element_size())
        self._file.seek(offset)
        self._file.write(_bytes(values))
        return _Kept(offset, tensor.shape, order, tensor.dtype, tensor.device)

    def _room(self, key: tuple[Hashable, str], size: int) -> int:
        if key not in self._rooms or self._rooms[key][1] < size:
            self._rooms[key] = self._end, size
            self._end += size
        return self._rooms[key][0]

    def _read(self, kept: _Kept) -> Tensor:
        values = torch.empty([kept.shape[axis] for axis in kept.order], dtype=kept.dtype)
        self._file.seek(kept.offset)
        self._file.readinto(_bytes(values))
        back = sorted(range(values.ndim), key=lambda axis: kept.order[axis])
        return values.permute(back).to(kept.device)


def _bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return values.flatten().view(torch.uint8).numpy().data
