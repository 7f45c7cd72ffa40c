"""Streams of tokens between blocks, kept in files so that memory does not grow with the images."""

import contextlib
from collections.abc import Callable
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor, nn


class Stream:
    """Batches of activations in a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.places: list[tuple[int, torch.Size]] = []

    def __len__(self) -> int:
        return len(self.places)

    def add(self, x: Tensor) -> None:
        self.places.append((self.file.seek(0, 2), x.shape))
        self.file.write(x.contiguous().cpu().numpy().data)

    def replace(self, index: int, x: Tensor) -> None:
        """Put `x` in the place of batch `index`; it must not be larger."""
        place, shape = self.places[index]
        assert x.numel() <= shape.numel()
        self.places[index] = (place, x.shape)
        self.file.seek(place)
        self.file.write(x.contiguous().cpu().numpy().data)

    def read(self, index: int, device: torch.device) -> Tensor:
        place, shape = self.places[index]
        self.file.seek(place)
        values = np.fromfile(self.file, np.float32, shape.numel())
        return torch.from_numpy(values).view(shape).to(device)


class _Seen(Exception):
    """The input is there: what follows need not be computed."""


def layer_input(layer: nn.Module, compute: Callable[[], object]) -> Tensor:
    """What `layer` gets when `compute` is called, which goes no further."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Seen

    handle = layer.register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(_Seen):
            compute()
    finally:
        handle.remove()
    return seen[0]


def first_input(module: nn.Module, pixels: Tensor) -> Tensor:
    """What the first of the blocks of a plain ViT gets for `pixels`."""
    return layer_input(cast(nn.Sequential, module.blocks)[0], lambda: module(pixels))
