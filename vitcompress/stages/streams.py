"""Streams of tokens between blocks, kept in files so that memory does not grow with the images."""

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


def first_input(module: nn.Module, pixels: Tensor) -> Tensor:
    """What the first of the blocks of a plain ViT gets for `pixels`."""
    seen: list[Tensor] = []
    whole = cast(nn.Sequential, module.blocks)
    handle = whole[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module.blocks = whole[:1]
    try:
        module(pixels)
    finally:
        handle.remove()
        module.blocks = whole
    return seen[0]
