"""Those merge that change the answer least, by its gradients."""

from vitcompress.methods.selection import descending
from vitcompress.methods.tokens import READER, Merge, Method, Tokens, nearest


def choose(tokens: Tokens, keep: int) -> Merge:
    """Those go whose merging changes the model's answer least, to second order.

    Moving a token by d changes the answer by about ½ (gᵀd)² nats, g the gradient at the token. Here
    `importance` stands for |g|, and the price of a token is |g|²·δ², with δ the distance to the
    nearest token of more importance (the decision value of density-peak clustering: Rodriguez &
    Laio, 2014). The cheapest go and join the nearest that stays, whose mean is weighted by
    importance.
    """
    importance, points = tokens.importance, tokens.points
    above = (importance[:, None] > importance[..., None]).to(points.dtype)
    # Products lie in [−1, 1]: half of one plus one is more than half of any other.
    likeness = 0.5 * (points @ points.transpose(1, 2)) + above
    distance = 1.5 - likeness.amax(-1)  # a quarter of δ²; 1 where none is above
    order = descending(importance * importance * distance)
    kept, gone = order.split([keep, order.shape[1] - keep], 1)
    return Merge(kept, gone, nearest(points, kept, gone), weight=importance)


METHOD = Method(
    reading=READER,
    choose=choose,
    compared=lambda count, keep: count**2 + (count - keep) * keep,
    unmixed=0.25,
)
