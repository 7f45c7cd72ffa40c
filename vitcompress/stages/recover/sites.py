"""Which sites of a model its distance from the dense one comes from."""

from collections.abc import Mapping

import torch
from torch import nn

from vitcompress import parallel
from vitcompress.errors import InputError
from vitcompress.model.anatomy import Site
from vitcompress.model.architecture import VitModel
from vitcompress.model.families import anatomy_of
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.probe import Probe

_IMAGES, _BATCH = 32, 8  # enough to compare sites
_MATTER = 0.8  # of what all sites bring


def check_sites(model: VitModel, where: str) -> None:
    """Raise `InputError` for a model whose sites cannot be compared with those of the dense one."""
    why = None
    if not model.anatomy.sites:
        why = "its blocks are not of a kind that is known"
    elif model.architecture.embedding is not None:
        why = "its stream of tokens is narrower than that of the dense model"
    if why is not None:
        name = model.architecture.timm
        raise InputError(f"{where}: sites of {name} cannot be compared: {why}; set it to all")


def sites_that_matter(model: VitModel, context: Context) -> list[str]:
    """The names of the fewest sites that bring most of the distance of `model`, which is on the
    device of `context`, in the order of computation.

    What one brings is how much nearer the model comes to the dense one with that site of it.
    """
    dense = anatomy_of(placed(context.dense.module, context.device))
    pixels = torch.cat(list(context.shared_batches("reading images", _IMAGES)))
    batches = parallel.dealt(pixels.to(context.device).split(_BATCH))
    probe = Probe(model.anatomy, batches, model.task.distance, reference=dense.module)
    there, before = {site.name for site in model.anatomy.sites}, probe.cost({})
    sites = [site for site in dense.sites if site.name in there]
    tracked = context.track(sites, "comparing sites", len(sites))
    brings = {site.name: before - probe.cost(_parts(site)) for site in tracked}
    return _fewest(brings)


def _parts(site: Site) -> Mapping[str, nn.Module]:
    return {site.name: site.operator, site.norm_name: site.norm}


def _fewest(brings: Mapping[str, float]) -> list[str]:
    """The names that bring `_MATTER` of all together; all of them where none brings anything."""
    left = _MATTER * sum(max(0.0, value) for value in brings.values())
    if not left > 0:
        return list(brings)
    chosen = set[str]()
    for name in sorted(brings, key=lambda name: -brings[name]):
        if left <= 0:
            break
        chosen.add(name)
        left -= brings[name]
    return [name for name in brings if name in chosen]
