"""Links of attention: which keys each query attends to, and maps that tell them at less cost.

A softmax over few keys needs the products of a query with these alone, once it is known which they
are. The largest logits tell exactly; so do, nearly, products of queries and keys that were brought
to few dimensions, and may be taken of all pairs. The maps are found in closed form from second
moments: those of lowest rank (as Sparsifiner, 2303.13755, learns them), or a choice of channels
(double sparsity, 2408.07092), which needs no product of its own.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vitcompress.methods.subspace import query_key_basis

Choice = Literal["low_rank", "channels"]


class Moments(NamedTuple):
    """By head, sums of q qᵀ and of k kᵀ [h, d, d], keys centred within their image, float64."""

    queries: Tensor
    keys: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor) -> "Moments":
        """Those of q and k [B, h, N, d]."""
        q, k = q.double(), k.double()
        k = k - k.mean(-2, keepdim=True)
        return cls((q.mT @ q).sum(0), (k.mT @ k).sum(0))


class Maps(NamedTuple):
    """How queries and keys of each head are brought to few dimensions, [h, d, r] each."""

    queries: Tensor
    keys: Tensor


def low_rank(moments: Moments, rank: int) -> Maps:
    """The maps to `rank` dimensions whose logits are nearest to the true ones, by mean square over
    all pairs, but for what all keys of a query share, which changes no order."""
    bases = [query_key_basis(*pair)[:2] for pair in zip(*moments, strict=True)]
    return Maps(*(torch.stack(each)[..., :rank] for each in zip(*bases, strict=True)))


def channels(moments: Moments, rank: int) -> Maps:
    """The maps to those `rank` channels of each head whose products q·k vary most."""
    energy = moments.queries.diagonal(dim1=-2, dim2=-1) * moments.keys.diagonal(dim1=-2, dim2=-1)
    chosen = energy.topk(rank).indices.sort().values
    unit = torch.eye(energy.shape[-1], dtype=energy.dtype, device=energy.device)
    picked = unit[chosen].mT
    return Maps(picked, picked)


def strongest(scores: Tensor, kept: int) -> Tensor:
    """Where the `kept` largest of each row of scores [..., M, N] are, bool: so many a row."""
    chosen = scores.topk(kept, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True)


def kept_links(share: float, keys: int) -> int:
    """How many of its `keys` a query keeps: at least one."""
    return max(1, round(share * keys))


def cost(share: float, keys: int, dims: int, how: Choice | None = None, rank: int = 0) -> float:
    """The multiply-accumulates of sparse attention, as a share of those of the products of dense
    attention: those of `keys` queries with as many keys of `dims` channels, and with their values.

    `how`: what tells the links: scores of `rank` dimensions, those of low rank with the product of
    their maps; then the logits of the links alone are computed. None: the logits of all.
    """
    links = kept_links(share, keys) / keys
    if how is None:
        return (1 + links) / 2
    mapped = rank / keys if how == "low_rank" else 0.0
    return links + rank / (2 * dims) + mapped
