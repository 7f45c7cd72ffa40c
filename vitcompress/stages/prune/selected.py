"""Heads whose query-key dimensions are selected, not turned to another basis.

Where queries and keys are normed, the weights of the norm belong to dimensions, and all heads of a
block share them: so all heads keep the same dimensions. Where they are turned by their positions,
only what commutes with these turns is free: pairs of dimensions stay or go, in each head its own.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.methods.compensation import with_constant
from vitcompress.methods.subspace import Affine, NormedHeads, selected_norm
from vitcompress.model.modules.attention import Attention


def is_normed(attention: Attention) -> bool:
    return not isinstance(attention.q_norm, nn.Identity)


def is_selected(attention: Attention) -> bool:
    return is_normed(attention) or attention.rotation is not None


def tied_worth(attention: Attention, worth: Tensor) -> Tensor:
    """The `worth` of query-key dimensions [heads, d] where those that stay or go together share it.

    Pairs then lie side by side in any stable order by worth.
    """
    if attention.rotation is not None:
        worth = worth.unflatten(1, (-1, 2)).mean(2).repeat_interleave(2, 1)
    if is_normed(attention):
        worth = worth.mean(0, keepdim=True).expand_as(worth)
    return worth


def selectable(attention: Attention) -> bool:
    """Whether the norms are of a kind that is known, with weights to adapt."""
    from timm.layers import RmsNorm

    return all(
        isinstance(norm, (nn.LayerNorm, nn.RMSNorm, RmsNorm)) and norm.weight is not None
        for norm in (attention.q_norm, attention.k_norm)
    )


def query_key_moments(
    attention: Attention, q: Tensor, k: Tensor, weights: Tensor, received: Tensor
) -> NormedHeads:
    """Moments of queries and keys [B, heads, N, d] as their norms make them, before weights and
    before they are turned by their positions, which is not looked at.

    Queries count by `weights` [1 or B, 1, N, 1], keys by the attention `received` [B, heads, N, 1].
    """
    q, k = with_constant(_plain(attention.q_norm, q)), _plain(attention.k_norm, k)
    centred = k - (received * k).sum(-2, keepdim=True)

    def gram(x: Tensor, weight: Tensor) -> Tensor:
        return ((x * weight).transpose(-1, -2) @ x).sum(0).double().cpu()

    return NormedHeads(gram(q, weights), gram(centred, received), gram(k, received))


def fill_norms(
    source: Attention, target: Attention, kept: Tensor, found: NormedHeads | None
) -> None:
    """Give `target` norms of the dimensions `kept` [k] of those of `source` (in place).

    With the moments `found` they give the logits that come nearest to those of all dimensions.
    """
    norms = {"q_norm": _affine(source.q_norm), "k_norm": _affine(source.k_norm)}
    if found is None:
        chosen: Mapping[str, Affine] = {
            name: Affine(weight[kept], bias[kept]) for name, (weight, bias) in norms.items()
        }
    else:
        with_bias = getattr(source.q_norm, "bias", None) is not None
        centred = isinstance(source.q_norm, nn.LayerNorm)
        query = selected_norm(found, norms["q_norm"], norms["k_norm"], kept, centred, with_bias)
        key = Affine(torch.ones_like(query.weight), torch.zeros_like(query.bias))
        chosen = {"q_norm": query, "k_norm": key}
    for name, (weight, bias) in chosen.items():
        norm = getattr(target, name)
        norm.weight.copy_(weight)
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(bias)


def _plain(norm: Any, x: Tensor) -> Tensor:
    """What `norm` gives without its weight and bias."""
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
    return F.rms_norm(x, norm.normalized_shape, eps=norm.eps)


def _affine(norm: Any) -> Affine:
    weight = norm.weight.double().cpu()
    bias = getattr(norm, "bias", None)
    return Affine(weight, torch.zeros_like(weight) if bias is None else bias.double().cpu())
