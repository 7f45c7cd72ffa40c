"""What a ViT costs by how many tokens its blocks pass on: multiply-accumulates or milliseconds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitcompress.measure.cost import macs
from vitcompress.measure.latencies import LatencyTable
from vitcompress.measure.sites import site_latency, site_macs
from vitcompress.memory import copied
from vitcompress.methods.tokens import Widths, method_of
from vitcompress.model.anatomy import Anatomy, Site, SiteTokens
from vitcompress.model.architecture import VitModel, set_merging, unfilled
from vitcompress.model.merging import Merging
from vitcompress.model.sizes import size_of

_TIMED = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the tokens at which branches are timed


@dataclass(frozen=True)
class TokenCost:
    """`block` (number, tokens in, tokens through its MLP) → what it costs; `rest`: all else.

    `tokens` come into the first block. Called with the tokens kept after each block: the cost of
    the whole model.
    """

    block: Callable[[int, int, int], float]
    rest: float
    tokens: int

    def __call__(self, kept: Sequence[int]) -> float:
        coming = (self.tokens, *kept)
        return self.rest + sum(self.block(i, coming[i], n) for i, n in enumerate(kept))


def schedule_macs(model: VitModel, merging: Merging) -> TokenCost:
    """Multiply-accumulates of `model` if it merged as `merging` says, whatever that keeps.

    `model` merges nothing yet; its last block may compute prefix tokens only.
    """
    anatomy = model.anatomy
    halves, prefix, method = _halves(anatomy), anatomy.prefix_tokens, method_of(merging.method)

    def of_block(number: int, tokens: int, kept: int) -> int:
        block = anatomy.blocks[number]
        total = sum(
            site_macs(site, _seen(site, tokens, kept), size_of(site)) for site in halves[number]
        )
        if kept < tokens and block.tokens is None:
            widths = _widths(halves[number][0], merging, prefix)
            total += method.macs(widths, tokens - prefix, kept - prefix)
        return total

    dense = TokenCost(of_block, 0, anatomy.tokens)([anatomy.tokens] * len(halves))
    return TokenCost(of_block, macs(model) - dense, anatomy.tokens)


def schedule_latency(model: VitModel, merging: Merging, table: LatencyTable) -> TokenCost:
    """Milliseconds of one image on one thread, of `model` if it merged as `merging` says.

    Branches are timed at a few counts of tokens, and what merging itself takes in a block by the
    difference between two whole models, the one that merges as `merging` and one that does not.
    """
    anatomy, tokens = model.anatomy, model.anatomy.tokens
    halves, dense = _halves(anatomy), unfilled(model).anatomy.sites[0].first.in_features
    counts = sorted({max(1, round(share * tokens)) for share in _TIMED})

    def timed(site: Site, tokens: int, kept: int) -> float:
        """Between what was timed, but for where the number of tokens never changes."""
        limit = site.block.tokens
        fixed = limit is not None and site.kind == "mlp"

        def at(count: int) -> float:
            seen = _seen(site, count, count)
            return site_latency(site, seen, size_of(site), table, dense=dense)

        if fixed:
            return at(tokens)
        count = tokens if site.kind == "attention" else kept
        return float(np.interp(count, counts, [at(n) for n in counts]))

    def branches(number: int, tokens: int, kept: int) -> float:
        return sum(timed(site, tokens, kept) for site in halves[number])

    plain = TokenCost(branches, 0, tokens)
    rest = table.rest(model, plain([tokens] * len(halves)))
    module = copied(model.module)
    set_merging(module, merging)
    architecture = model.architecture.model_copy(update={"merging": merging})
    merged = replace(model, module=module, architecture=architecture)
    steps = sum(merging.merges(number, tokens) for number in range(len(halves)))
    step = max(0.0, table.rest(merged, plain(merging.kept)) - rest) / max(1, steps)
    return TokenCost(lambda i, n, k: branches(i, n, k) + step * (k < n), rest, tokens)


def _halves(anatomy: Anatomy) -> list[list[Site]]:
    """The sites of each block."""
    return [
        [site for site in anatomy.sites if site.number == number]
        for number in range(len(anatomy.blocks))
    ]


def _seen(site: Site, tokens: int, kept: int) -> SiteTokens:
    """What `site` computes with where `tokens` come into its block and `kept` go through its MLP,
    or as many as the block computes."""
    limit = min(site.block.tokens or tokens, tokens)
    if site.kind == "attention":
        return SiteTokens(tokens, limit, tokens)
    through = min(kept, limit)
    return SiteTokens(through, through, 0)


def _widths(site: Site, merging: Merging, prefix: int) -> Widths:
    """Of the block of `site`, an attention."""
    attention = site.operator
    keys, heads = attention.widths[1], attention.num_heads
    return Widths(site.first.in_features, keys, heads, prefix, merging.rank)
