"""Ordering, picking and comparing tokens, image by image: operators that stay whole when exported.

As custom operators they become TopK, GatherND, OneHot, RMSNormalization where torch's own would
become chains of nodes, and equal scores are ordered alike on both sides: first comes first. Indices
are int64 [B, k].
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def _columns(index: Tensor, like: Tensor) -> Tensor:
    """`index` [B, k], or the same for all columns of `like` [B, ..., C]: [B, k, C]."""
    return index if like.ndim == 2 else index[..., None].expand(-1, -1, like.shape[2])


@torch.library.custom_op("vitcompress::descending", mutates_args=())
def _descending(scores: Tensor) -> Tensor:
    return scores.argsort(dim=1, descending=True, stable=True)


@_descending.register_fake
def _(scores: Tensor) -> Tensor:
    return torch.empty_like(scores, dtype=torch.int64)


@torch.library.custom_op("vitcompress::rows", mutates_args=())
def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, _columns(index, x))


@_rows.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(*index.shape, *x.shape[2:])


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, index = inputs
    ctx.count = x.shape[1]
    ctx.save_for_backward(index)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    nothing = gradient.new_zeros(len(gradient), ctx.count, *gradient.shape[2:])
    return nothing.scatter_add(1, _columns(index, gradient), gradient), None


# Scores of layers need gradients, also of models that merge tokens.
torch.library.register_autograd("vitcompress::rows", _back, setup_context=_remember)


@torch.library.custom_op("vitcompress::added", mutates_args=())
def _added(x: Tensor, index: Tensor, y: Tensor) -> Tensor:
    # As a product, since GPUs add what is scattered in any order.
    ones = F.one_hot(index, x.shape[1]).transpose(1, 2).to(y.dtype)
    return x + (ones @ y if y.ndim == 3 else (ones @ y[..., None]).squeeze(-1))


@_added.register_fake
def _(x: Tensor, index: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x)


def _remember_added(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _back_added(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
    (index,) = ctx.saved_tensors
    return gradient, None, gradient.gather(1, _columns(index, gradient))


torch.library.register_autograd("vitcompress::added", _back_added, setup_context=_remember_added)


@torch.library.custom_op("vitcompress::unit", mutates_args=())
def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)


@_unit.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def descending(scores: Tensor) -> Tensor:
    """The order of `scores` [B, n] from the largest, [B, n]; equals keep their order."""
    return cast(Tensor, _descending(scores))


def rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows `index` [B, k] of `x` [B, n, C] or [B, n], each image its own: [B, k, C], [B, k]."""
    return cast(Tensor, _rows(x, index))


def added(x: Tensor, index: Tensor, y: Tensor) -> Tensor:
    """`x` [B, n, C] or [B, n] with the rows of `y` [B, m, C], [B, m] added to its rows `index`
    [B, m], which may repeat."""
    return cast(Tensor, _added(x, index, y))


def unit(x: Tensor) -> Tensor:
    """`x` [B, n, C] with rows of length 1; a row of zeros stays."""
    return cast(Tensor, _unit(x))


def inverse(order: Tensor) -> Tensor:
    """The place of each token in `order` [B, n], a permutation of 0 … n − 1 for each image."""
    return descending(-order.float())
