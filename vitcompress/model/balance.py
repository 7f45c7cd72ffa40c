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


@torch.no_grad()
def level_keys(attention: Attention, inputs: Tensor) -> None:
    """Give queries and keys of `inputs` [rows, in] ranges of one width in each dimension, and those
    of keys the middle 0 (in place), where nothing lies between them and their products.

    What all keys of a dimension share adds the same to all logits of a query, which softmax does
    not see. Quantizers of one range for all dimensions do.
    """
    qkv, norms = attention.qkv, (attention.q_norm, attention.k_norm)
    plain = all(isinstance(norm, nn.Identity) for norm in norms) and attention.rotation is None
    if not (plain and isinstance(qkv, nn.Linear) and cast(Tensor | None, qkv.bias) is not None):
        return
    queries, keys, _ = (slice(*ends) for ends in _ends(attention))
    lows, highs = qkv(inputs).aminmax(dim=0)
    qkv.bias[keys].sub_((lows + highs)[keys] / 2)
    spans = highs - lows
    scale = _scale(spans[queries], spans[keys])
    _scale_rows(qkv, queries, scale)
    _scale_rows(qkv, keys, 1 / scale)


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
