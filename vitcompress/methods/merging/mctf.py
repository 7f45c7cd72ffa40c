"""Similarity, attention and size weigh together."""

import torch

from vitcompress.methods.selection import descending, inverse, rows
from vitcompress.methods.tokens import (
    ATTENTION,
    LEAST,
    Merge,
    Method,
    Tokens,
    attended,
    bipartite,
    in_place,
)


def choose(tokens: Tokens, keep: int) -> Merge:
    """Matching by similarity, attention and size, both ways (Lee et al., CVPR 2024).

    A pair's attraction is the product of (cos + 1)/2, (1/(a_i a_j))^(1/20), (1/(s_i s_j))^(1/40).
    Half of the tokens to remove go from one side of the bipartition to the other and half back. The
    mean is weighted by size and by the attention a that all tokens pay.

    Theirs is of the block whose attention comes next: it is computed for the unmerged tokens, and
    then merged, keys added up and queries averaged. As means and products commute, that is merging
    what the attention gives, as here, but for values, which here are those of single tokens.
    """
    repel = (tokens.importance + LEAST).log() / 20 + tokens.sizes.log() / 40
    attraction = (bipartite(tokens.points) + 1).clamp_min(1e-6).log()
    attraction = attraction - repel[:, 1::2, None] - repel[:, None, ::2]
    removed = tokens.points.shape[1] - keep
    there, back = removed // 2, removed - removed // 2
    best, target = attraction.max(-1)
    order = descending(best)
    gone_odd, kept_odd = order[:, :there], in_place(order[:, there:])
    returned, home = rows(attraction, kept_odd).max(1)
    order = descending(returned)
    gone_even, kept_even = order[:, :back], in_place(order[:, back:])
    # An odd token whose even partner goes on to an odd one goes there with it.
    slots = kept_odd.shape[1] + torch.arange(kept_even.shape[1], device=order.device)
    homes = rows(home, gone_even)
    place = torch.cat([homes, slots.expand(order.shape[0], -1)], 1)
    now = rows(place, inverse(torch.cat([gone_even, kept_even], 1)))
    moved = rows(now, rows(target, gone_odd))
    return Merge(
        kept=torch.cat([2 * kept_odd + 1, 2 * kept_even], 1),
        gone=torch.cat([2 * gone_odd + 1, 2 * gone_even], 1),
        target=torch.cat([moved, homes], 1),
        weight=attended(tokens),
    )


METHOD = Method(
    reading=ATTENTION,
    choose=choose,
    compared=lambda count, keep: count // 2 * (count - count // 2),
    fewest=lambda count: count - 2 * (count // 2) + 2,
)
