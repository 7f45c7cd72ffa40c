"""All become new ones, around points far from each other."""

from vitcompress.methods.centres import farthest
from vitcompress.methods.selection import rows
from vitcompress.methods.tokens import READER, Method, Mixture, Tokens, gathered


def choose(tokens: Tokens, keep: int) -> Mixture:
    """Soft merging (as STViT, Chang et al., CVPR 2023, and self-slimmed ViTs, Zong et al., ECCV
    2022, but not trained): the centres are tokens that matter and are far from each other."""
    chosen = farthest(tokens.points, tokens.importance, keep)
    return gathered(rows(tokens.points, chosen), tokens)


METHOD = Method(
    reading=READER,
    choose=choose,
    compared=lambda count, keep: count**2 + keep * count,
    mixtures=True,
)
