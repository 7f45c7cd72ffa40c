"""What a site of given sizes costs: multiply-accumulates, parameters, bytes or nanoseconds."""

from collections.abc import Callable
from dataclasses import dataclass

from vitcompress.measure import cost
from vitcompress.measure.latencies import LatencyTable
from vitcompress.measure.sites import site_latency, site_macs
from vitcompress.model.anatomy import Anatomy, Site, SiteTokens
from vitcompress.model.architecture import VitModel, unfilled
from vitcompress.model.sizes import SiteSizes, gates, size_of
from vitcompress.stages.prune.config import Unit

_NANOSECONDS = 1e6  # a millisecond: budgets are spent in whole units

SiteCost = Callable[[str, SiteSizes | None], float]
"""Of the site of this name, if it had these sizes; None: if it was not there."""


@dataclass(frozen=True)
class SiteCosts:
    """Costs of a model: `site` tells that of one of its sites.

    `whole`: of the dense model that budgets refer to. `fixed`: of all that is no site.
    """

    site: SiteCost
    whole: float
    fixed: float


def site_costs(model: VitModel, unit: Unit, table: LatencyTable) -> SiteCosts:
    """How `model` is to be measured in `unit`.

    Latencies that are not in `table` are taken now, and put there.
    """
    dense = unfilled(model)
    if unit == "latency":
        return _timed(model, dense, table)
    if unit == "macs":
        anatomy = model.anatomy
        return _counted(
            model,
            dense,
            cost.macs,
            lambda site, size: site_macs(site, _tokens(anatomy, site), size),
        )
    each = 4 if unit == "bytes" else 1
    return _counted(
        model,
        dense,
        lambda of: each * cost.parameters(of.module),
        lambda site, size: each * _parameters(site, size),
    )


def _counted(
    model: VitModel,
    dense: VitModel,
    total: Callable[[VitModel], int],
    of: Callable[[Site, SiteSizes | None], float],
) -> SiteCosts:
    sites = _sites(model)
    each = sum(of(site, size_of(site)) for site in sites.values())
    return SiteCosts(lambda name, size: of(sites[name], size), total(dense), total(model) - each)


def _timed(model: VitModel, dense: VitModel, table: LatencyTable) -> SiteCosts:
    originals = _sites(dense)

    def nanoseconds(model: VitModel) -> SiteCost:
        anatomy, sites = model.anatomy, _sites(model)

        def of(name: str, size: SiteSizes | None) -> float:
            site, full = sites[name], originals[name].first.in_features
            tokens = _tokens(anatomy, site)
            return _NANOSECONDS * site_latency(site, tokens, size, table, dense=full)

        return of

    of = nanoseconds(dense)
    each = sum(of(name, size_of(site)) for name, site in originals.items())
    rest = _NANOSECONDS * table.rest(dense, each / _NANOSECONDS)
    # What is no site, the patch embedding and the head, is in proportion to the width.
    name, site = next(iter(_sites(model).items()))
    share = site.first.in_features / originals[name].first.in_features
    return SiteCosts(nanoseconds(model), each + rest, rest * share)


def _sites(model: VitModel) -> dict[str, Site]:
    return {site.name: site for site in model.anatomy.sites}


def _tokens(anatomy: Anatomy, site: Site) -> SiteTokens:
    tokens = anatomy.tokens_at(site)
    assert tokens is not None
    return tokens


def _parameters(site: Site, size: SiteSizes | None) -> float:
    if size is None:
        return 0
    width = site.first.in_features
    if isinstance(size, int):
        matrices = 2 + gates(site.block)
        return size * (matrices * width + matrices - 1) + width + 2 * width
    table = site.operator.relative_position_bias_table
    places = 0 if table is None else len(table) * size.heads
    return sum(size.widths) * (width + 1) + (size.widths[2] + 1) * width + 2 * width + places
