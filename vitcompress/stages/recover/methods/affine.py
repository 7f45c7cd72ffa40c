"""A scale and a shift for each channel of what each branch adds, in closed form: free at run time.

Site after site, in the model as it is by then: what the attention or the MLP adds to the stream of
tokens is fitted to what would bring the stream back to that of the dense model (QwT-v2,
2505.20932). Scale and shift go into the weights, or the scales of the codes, and the bias of the
last layer. Errors made before a site are only partly a function of what it gives, so the fit is
drawn towards no change; how strongly, and which tokens count, is chosen by the answers on images
that took no part in it, and a site that brings these no nearer to the dense ones stays as it was.
"""

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor

from vitcompress import parallel
from vitcompress.console import track
from vitcompress.details import Row, Table
from vitcompress.methods.channels import Affine, ChannelMoments, fitted
from vitcompress.model.anatomy import Anatomy, Site
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.outlet import Outlet, adjusted, outlet, outlet_name, shifts
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.importance import Importance, importances
from vitcompress.stages.observe import readout_loss, unlabelled
from vitcompress.stages.probe import (
    Change,
    Probe,
    first_changed,
    mean_root,
    probe_against_dense,
)
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.stages.recover.methods import Method, Recovered
from vitcompress.stages.sequence import SitePair, side_by_side
from vitcompress.tasks import Task

_DAMPINGS = (0.1, 1.0)
_GAINS = (0.97, 1.03)  # of a whole branch; pruning and rounding weaken some, and strengthen others
_GRADIENT_IMAGES = 128


def recover(model: VitModel, config: RecoverConfig, fit: Context, watched: Context) -> Recovered:
    """The model with other weights and biases in the last layers of its sites."""
    dense = anatomy_of(placed(fit.dense.module, fit.device))
    chooser = probe_against_dense(model, watched)
    anatomy = chooser.anatomy
    importance = _importance(dense, model.task, fit)
    batches = ((pixels, False) for pixels in _pixels(fit, "reading images"))
    least, rows, changed = cast(Tensor, _distances(chooser, {})), list[Row](), 0
    columns = tuple(f"root_{model.task.word}_{when}" for when in ("before", "fitted"))
    places = side_by_side(dense, anatomy, batches)
    for place in track(places, "fitting channels", len(dense.sites)):
        if place.twin is None or outlet(place.twin) is None:
            continue
        name, best = outlet_name(place.twin), least
        for layer in _candidates(place, place.twin, importance[place.site.name]):
            found = _distances(chooser, {name: layer}, least)
            if found is not None and mean_root(found) < mean_root(best):  # NaN is no gain
                best = found
                chosen = layer
        roots = (mean_root(least), mean_root(best))
        rows.append({"site": place.site.name, **dict(zip(columns, roots, strict=True))})
        if best is not least:
            least, changed = best, changed + 1
            model.module.set_submodule(name, chosen)
            chooser.accept(Change(anatomy, first_changed(anatomy, [name])))
    return Recovered(model.module, {"sites_changed": changed}, (Table.of("sites", rows),))


def _distances(
    probe: Probe, layers: Mapping[str, Outlet], rival: Tensor | None = None
) -> Tensor | None:
    """As `Probe.distances`, with `layers` in their places."""
    with probe.replaced(layers) as change:
        return probe.distances(change, rival)


def _importance(dense: Anatomy, task: Task, fit: Context) -> dict[str, Importance]:
    """By site, what errors of what it adds to the stream are worth."""
    names = {site.name: site.scale_name for site in dense.sites}
    samples = unlabelled(_pixels(fit, "weighing branches", _GRADIENT_IMAGES))
    loss = readout_loss(task, torch.Generator().manual_seed(fit.seed))
    found = importances(dense.module, names.values(), samples, loss, dense.prefix_tokens)
    return {site: found[name] for site, name in names.items()}


def _pixels(context: Context, title: str, images: int | None = None) -> Iterator[Tensor]:
    return (pixels.to(context.device) for pixels in context.calibration_batches(title, images))


def _candidates(place: SitePair, site: Site, importance: Importance) -> list[Outlet]:
    """What may come into the place of the outlet of `site`: fitted to the tokens of each of the
    `_weightings`, drawn to what it is more or less; and all channels scaled alike."""
    totals: list[ChannelMoments] = []
    for given, wanted, _ in place.adding():
        weightings = _weightings(importance, given.shape[1])
        found = [ChannelMoments.of(given, wanted, each.to(given)) for each in weightings]
        totals = [a.plus(b) for a, b in zip(totals, found, strict=True)] if totals else found
    sums = parallel.summed_each(dict(enumerate(totals)), ChannelMoments)
    fits = [
        fitted(moments, importance.metric, damping, shifts(site))
        for moments in sums.values()
        for damping in _DAMPINGS
    ]
    still = torch.zeros_like(fits[0].shift)
    fits += [Affine(torch.full_like(still, gain), still) for gain in _GAINS]
    return [adjusted(site, *fit) for fit in fits]


def _weightings(importance: Importance, tokens: int) -> list[Tensor]:
    """How much each of so many tokens may count: as its importance says, or those alone that are no
    patches; merged tokens have no counterpart in the dense model, and these have."""
    prefix = importance.prefix_tokens
    alone = (torch.arange(tokens) < prefix).float()
    return [importance.token_weights(tokens), *([alone] if 0 < prefix < tokens else [])]


def _obstacle(model: VitModel) -> str | None:
    if model.architecture.embedding is not None:
        return "its stream of tokens is narrower than that of the dense model"
    if not any(outlet(site) is not None for site in model.anatomy.sites):
        return "its blocks are not of a kind that is known"
    return None


METHOD = Method(recover, _obstacle)
