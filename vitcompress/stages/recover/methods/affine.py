"""A scale and a shift for each channel of what each branch adds, in closed form: free at run time.

Site after site, in the model as it is by then: what the attention or the MLP adds to the stream of
tokens is fitted to what would bring the stream back to that of the dense model (QwT-v2,
2505.20932). Scale and shift go into the weights, or the scales of the codes, and the bias of the
last layer. Errors made before a site are only partly a function of what it gives, so the fit is
drawn towards no change, as strongly as serves the images held back best; a site that brings the
answers no nearer to those of the dense model stays as it was.
"""

from vitcompress.console import track
from vitcompress.details import Row, Table
from vitcompress.methods.channels import ChannelMoments, fitted
from vitcompress.model.anatomy import Site
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.outlet import Outlet, adjusted, outlet, outlet_name, shifts
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.probe import Change, Probe, first_changed
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.methods import Method, Recovered
from vitcompress.stages.sequence import SitePair, side_by_side

_DAMPINGS = (0.0, 0.1, 0.3, 1.0)


def recover(model: VitModel, config: RecoverConfig, fit: Context, judge: Probe) -> Recovered:
    """The model with other weights and biases in the last layers of its sites."""
    dense = anatomy_of(placed(fit.dense.module, fit.device))
    pixels = fit.calibration_batches("reading images")
    batches = ((batch.to(fit.device), False) for batch in pixels)
    least, word, rows, changed = judge.cost({}), model.task.word, list[Row](), 0
    places = side_by_side(dense, judge.anatomy, batches)
    for place in track(places, "fitting channels", len(dense.sites)):
        if place.twin is None or outlet(place.twin) is None:
            continue
        name = outlet_name(place.twin)
        tried = [(judge.cost({name: layer}), layer) for layer in _candidates(place, place.twin)]
        cost, layer = min(tried, key=lambda each: each[0])
        rows.append({"site": place.site.name, f"{word}_before": least, f"{word}_fitted": cost})
        if cost < least:
            least, changed = cost, changed + 1
            judge.anatomy.module.set_submodule(name, layer)
            judge.accept(Change(judge.anatomy, first_changed(judge.anatomy, [name])))
    return Recovered(judge.anatomy.module, {"sites_changed": changed}, (Table.of("sites", rows),))


def _candidates(place: SitePair, site: Site) -> list[Outlet]:
    """What may come into the place of the outlet of `site`, drawn to it more or less."""
    total: ChannelMoments | None = None
    for given, wanted, _ in place.adding():
        found = ChannelMoments.of(given, wanted, given.new_ones(given.shape[1]))
        total = found if total is None else total.plus(found)
    assert total is not None
    fits = (fitted(total, damping, shifts(site)) for damping in _DAMPINGS)
    return [adjusted(site, *(each.float() for each in fit)) for fit in fits]


def _obstacle(model: VitModel) -> str | None:
    if model.architecture.merging is not None:
        return "its tokens merge"
    if not any(outlet(site) is not None for site in model.anatomy.sites):
        return "its blocks are not of a kind that is known"
    return None


METHOD = Method(recover, _obstacle)
