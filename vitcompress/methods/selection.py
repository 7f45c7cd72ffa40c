"""Ordering and picking tokens, image by image: two operators that stay whole when exported.

torch's own sort and gather would become chains of ONNX nodes; as custom operators each is one node
(TopK and GatherND), with the same rule for equal scores on both sides: the first comes first.
"""

from typing import cast

import torch
from torch import Tensor


@torch.library.custom_op("vitcompress::descending", mutates_args=())
def _descending(scores: Tensor) -> Tensor:
    return scores.argsort(dim=1, descending=True, stable=True)


@_descending.register_fake
def _(scores: Tensor) -> Tensor:
    return torch.empty_like(scores, dtype=torch.int64)


@torch.library.custom_op("vitcompress::rows", mutates_args=())
def _rows(x: Tensor, index: Tensor) -> Tensor:
    shape = (*index.shape, *x.shape[2:])
    return x.gather(1, index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand(shape))


@_rows.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(*index.shape, *x.shape[2:])


def descending(scores: Tensor) -> Tensor:
    """The order of `scores` [B, n] from the largest, int64 [B, n]; equals keep their order."""
    return cast(Tensor, _descending(scores))


def rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows `index` [B, k] of `x` [B, n, ...], each image its own: [B, k, ...]."""
    return cast(Tensor, _rows(x, index))


def inverse(order: Tensor) -> Tensor:
    """The place of each token in `order` [B, n], a permutation of 0 … n − 1 for each image."""
    return descending(-order.float())
