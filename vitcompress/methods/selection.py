"""Ordering, picking and comparing tokens, image by image: operators that stay whole when exported.

As custom operators each is one ONNX node (TopK, GatherND, OneHot, RMSNormalization) where torch's
own would become chains of them, and equal scores are ordered alike on both sides: first comes
first. Indices are int64 [B, k, 1], one column, as GatherND wants them.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("vitcompress::descending", mutates_args=())
def _descending(scores: Tensor) -> Tensor:
    return scores.argsort(dim=1, descending=True, stable=True)


@_descending.register_fake
def _(scores: Tensor) -> Tensor:
    return torch.empty_like(scores, dtype=torch.int64)


@torch.library.custom_op("vitcompress::rows", mutates_args=())
def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.expand(-1, -1, x.shape[2]))


@_rows.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(index.shape[0], index.shape[1], x.shape[2])


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, index = inputs
    ctx.count = x.shape[1]
    ctx.save_for_backward(index)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    images, _, channels = gradient.shape
    nothing = gradient.new_zeros(images, ctx.count, channels)
    return nothing.scatter_add(1, index.expand(-1, -1, channels), gradient), None


# Scores of layers need gradients, also of models that merge tokens.
torch.library.register_autograd("vitcompress::rows", _back, setup_context=_remember)


@torch.library.custom_op("vitcompress::one_hot", mutates_args=())
def _one_hot(target: Tensor, count: int) -> Tensor:
    return F.one_hot(target, count).transpose(1, 2).float()


@_one_hot.register_fake
def _(target: Tensor, count: int) -> Tensor:
    return target.new_empty(target.shape[0], count, target.shape[1], dtype=torch.float32)


@torch.library.custom_op("vitcompress::unit", mutates_args=())
def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)


@_unit.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def descending(scores: Tensor) -> Tensor:
    """The order of `scores` [B, n, 1] from the largest, [B, n, 1]; equals keep their order."""
    return cast(Tensor, _descending(scores))


def rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows `index` [B, k, 1] of `x` [B, n, C], each image its own: [B, k, C]."""
    return cast(Tensor, _rows(x, index))


def one_hot(target: Tensor, count: int) -> Tensor:
    """A one in row target[b, j] of each column j: [B, m] → float32 [B, count, m]."""
    return cast(Tensor, _one_hot(target, count))


def unit(x: Tensor) -> Tensor:
    """`x` [B, n, C] with rows of length 1; a row of zeros stays."""
    return cast(Tensor, _unit(x))


def inverse(order: Tensor) -> Tensor:
    """The place of each token in `order` [B, n, 1], a permutation of 0 … n − 1 for each image."""
    return descending(-order.float())
