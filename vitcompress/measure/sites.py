"""What one site of a model costs with layers of any sizes: multiply-accumulates or milliseconds."""

from vitcompress.measure.latencies import LatencyTable
from vitcompress.model.anatomy import Site, SiteTokens
from vitcompress.model.sizes import SiteSizes, gates


def site_macs(site: Site, tokens: SiteTokens, size: SiteSizes | None) -> int:
    """Multiply-accumulates of one image at `site`, its layers float ones of `size`, or left out.

    `tokens`: as `Anatomy.tokens_at`.
    """
    if size is None:
        return 0
    width = int(site.first.in_features)
    if isinstance(size, int):
        return tokens.last * width * size * _matrices(site)
    query, _, value = size.widths
    queries = tokens.last if site.operator.windows is None else tokens.first
    linear = tokens.first * sum(size.widths) + tokens.last * value
    if site.operator.gate is not None:
        linear += tokens.last * value
    return linear * width + queries * tokens.keys * (query + value)


def site_latency(
    site: Site,
    tokens: SiteTokens,
    size: SiteSizes | None,
    table: LatencyTable,
    dense: int | None = None,
) -> float:
    """Milliseconds of one image on one thread, of `site` as in `site_macs`, norm and sum included.

    Where hidden units are gated, a plain MLP of as much work is timed. `dense`: the width of the
    stream for which the other sizes were made (None: the same).
    """
    if size is None:
        return 0.0
    width = int(site.first.in_features)
    if isinstance(size, int):
        return table.mlp(width, tokens.last, _matrices(site) * size // 2, dense or width)
    windowed = site.operator.windows is not None
    return table.attention(width, tokens, size, dense or width, windowed)


def _matrices(site: Site) -> int:
    """How many matrices of [hidden, width] an MLP has."""
    return 2 + gates(site.block)
