"""All that are not attended fuse."""

import torch

from vitcompress.methods.selection import descending
from vitcompress.methods.tokens import VALUES, Merge, Method, Tokens, attended


def choose(tokens: Tokens, keep: int) -> Merge:
    """Keep the most attended and fuse all others into one (Liang et al., ICLR 2022).

    The last of the kept is the start of the fused token, which is the mean of its parts, weighted
    by the attention paid to them.
    """
    order = descending(tokens.importance)
    kept, gone = order[:, :keep], order[:, keep:]
    return Merge(kept, gone, torch.full_like(gone, keep - 1), weight=attended(tokens))


METHOD = Method(reading=VALUES, choose=choose, compared=lambda count, keep: 0)
