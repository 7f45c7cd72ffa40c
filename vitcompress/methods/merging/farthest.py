"""Those stay that matter and are far from each other, chosen one by one."""

import torch

from vitcompress.methods.centres import farthest
from vitcompress.methods.selection import added, descending
from vitcompress.methods.tokens import READER, Merge, Method, Tokens, nearest


def choose(tokens: Tokens, keep: int) -> Merge:
    """As `fisher`, but a token is held against those that stay, not against all that matter more:
    one after the other, the one of most importance × distance to the nearest that stays."""
    kept = farthest(tokens.points, tokens.importance, keep)
    ones = torch.ones_like(tokens.importance)
    gone = descending(added(ones, kept, -ones[:, :keep]))[:, : ones.shape[1] - keep]
    return Merge(kept, gone, nearest(tokens.points, kept, gone), weight=tokens.importance)


METHOD = Method(
    reading=READER,
    choose=choose,
    compared=lambda count, keep: count**2 + (count - keep) * keep,
    unmixed=0.25,
)
