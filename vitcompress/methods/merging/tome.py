"""The most similar pairs merge."""

import torch

from vitcompress.methods.selection import descending, rows
from vitcompress.methods.tokens import KEYS, Merge, Method, Tokens, bipartite, in_place


def choose(tokens: Tokens, keep: int) -> Merge:
    """Bipartite soft matching (Bolya et al., ICLR 2023): every other token may join one between.

    The most similar pairs are merged. At most half can go.
    """
    similarity = bipartite(tokens.points)
    best, target = similarity.max(-1)
    order = descending(best)
    removed = tokens.points.shape[1] - keep
    gone, stay = order[:, :removed], in_place(order[:, removed:])
    other = torch.arange(0, tokens.points.shape[1], 2, device=order.device)
    others = other.expand(order.shape[0], -1)
    joined = rows(target, gone) + stay.shape[1]
    return Merge(torch.cat([2 * stay + 1, others], 1), 2 * gone + 1, joined)


METHOD = Method(
    reading=KEYS,
    choose=choose,
    compared=lambda count, keep: count // 2 * (count - count // 2),
    fewest=lambda count: count - count // 2,
)
