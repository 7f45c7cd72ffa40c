"""What one site of a model costs with layers of any sizes: multiply-accumulates or milliseconds."""

from vitcompress.measure.branches import LatencyTable
from vitcompress.model.anatomy import Site, SiteTokens
from vitcompress.model.sizes import AttentionSizes, gates, sizes_of

Sizes = AttentionSizes | int | None
"""Those of an attention, or the hidden units of an MLP; None for what is left out."""


def sizes_at(site: Site) -> Sizes:
    """The sizes of `site` as they are."""
    sizes = sizes_of(site.block)
    return sizes.attention if site.kind == "attention" else sizes.hidden


def site_macs(site: Site, tokens: SiteTokens, sizes: Sizes, width: int | None = None) -> int:
    """Multiply-accumulates of one image at `site`, its layers float ones of `sizes`.

    `tokens`: as `Anatomy.tokens_at`. `width`: of the stream (None: as it is).
    """
    width = width or int(site.first.in_features)
    if sizes is None:
        return 0
    if isinstance(sizes, int):
        return tokens.last * width * sizes * _matrices(site)
    query, _, value = sizes.widths
    queries = tokens.last if site.operator.windows is None else tokens.first
    linear = tokens.first * sum(sizes.widths) + tokens.last * value
    if site.operator.gate is not None:
        linear += tokens.last * value
    return linear * width + queries * tokens.keys * (query + value)


def site_latency(
    site: Site,
    tokens: SiteTokens,
    sizes: Sizes,
    table: LatencyTable,
    width: int | None = None,
    dense: int | None = None,
) -> float:
    """Milliseconds of one image on one thread, of `site` as in `site_macs`, norm and sum included.

    Where hidden units are gated, a plain MLP of as much work is timed. `dense`: the width of the
    stream for which the other sizes were made (None: the same).
    """
    width = width or int(site.first.in_features)
    if sizes is None:
        return 0.0
    if isinstance(sizes, int):
        return table.mlp(width, tokens.last, _matrices(site) * sizes // 2, dense or width)
    windowed = site.operator.windows is not None
    return table.attention(width, tokens, sizes, dense or width, windowed)


def _matrices(site: Site) -> int:
    """How many matrices of [hidden, width] an MLP has."""
    return 2 + gates(site.block)
