"""Shifting and scaling the input channels of a Linear without a trace in the output."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitcompress.model.modules.patches import PatchEmbed

Reparametrise = Callable[[Tensor, Tensor], None]
"""A function of (shift, scale), both [in], that changes the tensors feeding a layer, so that its
input x becomes (x − shift) / scale, and the layer itself, so that its output stays."""


def through_norm(norm: Any, layer: nn.Linear) -> Reparametrise | None:
    """For a layer that reads a LayerNorm alone, and all of it."""
    if not (isinstance(norm, nn.LayerNorm) and cast(Tensor | None, norm.bias) is not None):
        return None

    def change(shift: Tensor, scale: Tensor) -> None:
        norm.bias.copy_((norm.bias - shift) / scale)
        norm.weight.div_(scale)
        _absorb(layer, shift, scale)

    return change


def through_values(qkv: Any, layer: nn.Linear) -> Reparametrise | None:
    """For a layer that reads mixtures of the values of `qkv`, with weights that sum to one."""
    if not isinstance(qkv, nn.Linear) or cast(Tensor | None, qkv.bias) is None:
        return None

    def change(shift: Tensor, scale: Tensor) -> None:
        qkv.bias[-len(scale) :].sub_(shift).div_(scale)
        qkv.weight[-len(scale) :].div_(scale[:, None])
        _absorb(layer, shift, scale)

    return change


def through_pixels(embed: PatchEmbed) -> Reparametrise:
    """For the layer of a patch embedding; all pixels of a channel must be changed alike."""

    def change(shift: Tensor, scale: Tensor) -> None:
        area = math.prod(embed.patch_size)
        embed.rescale(shift[::area], scale[::area])
        _absorb(embed.proj, shift, scale)

    return change


def _absorb(layer: nn.Linear, shift: Tensor, scale: Tensor) -> None:
    """Change `layer` so that on (x − shift) / scale it gives what it gave on x."""
    offset = layer.weight @ shift
    if cast(Tensor | None, layer.bias) is None:
        layer.bias = nn.Parameter(torch.zeros_like(offset), requires_grad=False)
    layer.bias.add_(offset)
    layer.weight.mul_(scale)
