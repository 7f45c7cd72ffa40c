"""By image, the least attended are dropped or the most similar merge."""

import torch

from vitcompress.methods.merging import tome
from vitcompress.methods.selection import descending
from vitcompress.methods.tokens import KEYS, Merge, Method, Tokens, in_place, nearest


def choose(tokens: Tokens, keep: int, threshold: float = 2.7) -> Merge:
    """Each image either drops its least attended tokens or merges its most similar ones.

    Wu et al. (2023): it drops where attention is uneven, its variance above the threshold. Here
    `threshold` is the variance of n·a, where a sums to 1 over n tokens (7e-5 · 196² = 2.7).
    """
    attention = tokens.importance
    uneven = (attention / attention.mean(1, keepdim=True)).var(1, keepdim=True) > threshold
    merging = tome.choose(tokens, keep)
    order = descending(attention)
    kept, gone = in_place(order[:, :keep]), order[:, keep:]
    takes = (~uneven).to(tokens.sizes.dtype)
    return Merge(
        kept=torch.where(uneven, kept, merging.kept),
        gone=torch.where(uneven, gone, merging.gone),
        target=torch.where(uneven, nearest(tokens.points, kept, gone), merging.target),
        share=takes,
    )


METHOD = Method(
    reading=KEYS,
    choose=choose,
    compared=lambda count, keep: tome.METHOD.compared(count, keep) + (count - keep) * keep,
    fewest=tome.METHOD.fewest,
)
