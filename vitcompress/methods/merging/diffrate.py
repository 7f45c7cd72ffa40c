"""The least attended are dropped or merge."""

import torch

from vitcompress.methods.selection import descending
from vitcompress.methods.tokens import VALUES, Merge, Method, Tokens, nearest


def choose(tokens: Tokens, keep: int, dropped: int = 0) -> Merge:
    """The least attended tokens go (Chen et al., ICCV 2023, with the sizes not damped).

    Of these the `dropped` that are attended least are dropped; the others join the most similar of
    those that stay.
    """
    order = descending(tokens.importance)
    kept, gone = order[:, :keep], order[:, keep:]
    share = None
    if dropped:
        taken = torch.arange(gone.shape[1], device=gone.device) < gone.shape[1] - dropped
        share = taken.to(tokens.sizes.dtype)[None]
    return Merge(kept, gone, nearest(tokens.points, kept, gone), share)


METHOD = Method(
    reading=VALUES,
    choose=choose,
    compared=lambda count, keep: (count - keep) * keep,
    drop=choose,
)
