"""Heads whose two sides have equal scales: queries and keys, values and what reads them.

Only the product of both sides reaches the output, so that a scale may go from one to the other. It
changes nothing but how an optimizer sees the weights: one whose steps are of one size for all, as
Adam's are, breaks a head whose values are a thousand times smaller than what reads them, as bases
of unit variance make them.
"""

from typing import cast

import torch
from torch import Tensor, nn

from vitcompress.model.families import anatomy_of
from vitcompress.model.modules.attention import Attention


@torch.no_grad()
def balance(module: nn.Module) -> None:
    """Give each dimension of each head equal scales on both sides (in place), where layers are
    float and nothing between them, such as a norm or a rotation, minds.

    Where tokens merge by their keys, queries and keys stay as they are.
    """
    anatomy = anatomy_of(module)
    for site in anatomy.sites:
        attention = site.operator
        if isinstance(attention, Attention) and isinstance(attention.qkv, nn.Linear):
            turned = attention.rotation is not None or anatomy.merged is not None
            if not turned and isinstance(attention.q_norm, nn.Identity):
                _balance_keys(attention)
            if isinstance(attention.proj, nn.Linear) and isinstance(attention.norm, nn.Identity):
                _balance_values(attention, attention.proj)


def _balance_keys(attention: Attention) -> None:
    queries, keys, _ = (slice(*ends) for ends in _ends(attention))
    weight = attention.qkv.weight
    scale = _scale(weight[queries].norm(dim=1), weight[keys].norm(dim=1))
    _scale_rows(attention.qkv, queries, scale)
    _scale_rows(attention.qkv, keys, 1 / scale)


def _balance_values(attention: Attention, proj: nn.Linear) -> None:
    values = slice(*_ends(attention)[2])
    scale = _scale(attention.qkv.weight[values].norm(dim=1), proj.weight.norm(dim=0))
    _scale_rows(attention.qkv, values, scale)
    proj.weight.div_(scale)


def _ends(attention: Attention) -> list[tuple[int, int]]:
    queries, keys, values = attention.widths
    return [(0, queries), (queries, queries + keys), (queries + keys, queries + keys + values)]


def _scale(one: Tensor, other: Tensor) -> Tensor:
    """What to multiply `one` and divide `other` by to make them equal; 1 where either is zero."""
    scale = (other / one).sqrt()
    return torch.where((one > 0) & (other > 0), scale, 1.0)


def _scale_rows(layer: nn.Linear, rows: slice, scale: Tensor) -> None:
    layer.weight[rows].mul_(scale[:, None])
    if cast(Tensor | None, layer.bias) is not None:
        layer.bias[rows].mul_(scale)
