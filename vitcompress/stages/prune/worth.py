"""What each unit is worth: what a saliency can see of a model, and what one is made of.

A saliency is a file in `saliencies` with a `SALIENCY`, known to recipes by its name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from vitcompress import parallel, registry
from vitcompress.methods import saliency
from vitcompress.methods.folding import Folding
from vitcompress.model.anatomy import Anatomy, Site
from vitcompress.model.sizes import attention_weights, gates
from vitcompress.stages.importance import Importance
from vitcompress.stages.observe import Loss, Sample, Watch, observe
from vitcompress.stages.prune.activity import Activity, activities
from vitcompress.stages.prune.config import SALIENCIES, StructureKind
from vitcompress.stages.prune.selected import tied_worth
from vitcompress.stages.prune.statistics import SiteMoments

Key = tuple[str, StructureKind]
"""The name of a site, and one of its structures."""

Elimination = Callable[[Tensor, Tensor, Tensor, int, float], tuple[Tensor, Tensor]]
"""As `methods.elimination.eliminate`."""

Fold = Callable[[Tensor, Tensor], Folding]
"""As `methods.folding.fold`."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a model, its heads in the bases in which they are narrowed.

    `moments` and `importance` by site; `samples`: pixels to take gradients for, of the `loss`,
    afresh at each call. `generator`: what is random comes from it.
    """

    anatomy: Anatomy
    moments: SiteMoments
    importance: dict[str, Importance]
    samples: Callable[[], Iterable[Sample]]
    loss: Callable[[], Loss]
    generator: torch.Generator = field(default_factory=torch.Generator)

    @cached_property
    def gradient_sums(self) -> dict[Key, Tensor]:
        """Per image, Σ gradient × parameter over what is tied to each unit, [images, units]."""
        return _gradient_sums(self.anatomy, self.samples(), self.loss())

    @cached_property
    def activities(self) -> dict[str, Activity]:
        """Of the hidden units of each MLP, by site."""
        return activities(self.anatomy, (pixels for pixels, _ in self.samples()))

    def tied_weights(self, site: Site, kind: StructureKind) -> list[Tensor]:
        """The weights of each unit, as matrices with a row a unit."""
        last = site.last.weight.T
        if kind == "hidden":
            return [*site.first.weight.chunk(1 + gates(site.block)), last]
        q, k, v = attention_weights(site.operator)[0]
        return [q, k] if kind == "query_key" else [v, last]


class Saliency(NamedTuple):
    """What decides which units go.

    `worth`: what each query-key or value dimension of a site (heads one after the other), or each
    of its hidden units, is worth, [units]. `eliminate`: the order in which hidden units go, and
    what that costs, where the layer that reads them is refitted; None: by their worth.
    """

    worth: Callable[[Evidence, Site, StructureKind], Tensor]
    eliminate: Elimination | None = None
    fold: Fold | None = None


def saliency_of(name: str) -> Saliency:
    return cast(Saliency, registry.load_module(SALIENCIES, name).SALIENCY)


def worths(found: Saliency, evidence: Evidence) -> dict[Key, Tensor]:
    """What each dimension in heads and each hidden unit is worth, [groups, units].

    A head is worth the sum of its values' dimensions.
    """
    worth: dict[Key, Tensor] = {}
    for site in evidence.anatomy.sites:
        if site.kind == "mlp":
            worth[site.name, "hidden"] = found.worth(evidence, site, "hidden")[None]
            continue
        heads = site.operator.num_heads
        units = found.worth(evidence, site, "query_key").view(heads, -1)
        worth[site.name, "query_key"] = tied_worth(site.operator, units)
        worth[site.name, "value"] = found.worth(evidence, site, "value").view(heads, -1)
        worth[site.name, "heads"] = worth[site.name, "value"].sum(1)[None]
    return worth


def _gradient_sums(anatomy: Anatomy, batches: Iterable[Sample], loss: Loss) -> dict[Key, Tensor]:
    sums: dict[Key, list[Tensor]] = {}

    def add(key: Key, value: Tensor, gradient: Tensor) -> None:
        sums.setdefault(key, []).append(saliency.tied(value, gradient).cpu())

    def see_outputs(site: Site, _: Tensor, y: Tensor, gradient: Tensor | None) -> None:
        kinds, widths = _outputs(site)
        parts = (t.split(widths, -1) for t in (y, cast(Tensor, gradient)))
        for kind, *pair in zip(kinds, *parts, strict=True):
            add((site.name, kind), *pair)

    def see_inputs(site: Site, x: Tensor, _: Tensor, gradient: Tensor | None) -> None:
        kind: StructureKind = "value" if site.kind == "attention" else "hidden"
        add((site.name, kind), x, cast(Tensor, gradient))

    totals: dict[Key, list[Tensor]] = {}

    def after_batch() -> None:
        for key, tied in sums.items():  # all parameters of a unit
            totals.setdefault(key, []).append(torch.stack(tied).sum(0))
        sums.clear()

    watches = []
    for site in anatomy.sites:
        watches.append(Watch(site.first_name, partial(see_outputs, site), "output"))
        watches.append(Watch(site.last_name, partial(see_inputs, site), "input"))
    observe(anatomy.module, watches, batches, loss, after_batch)
    by_process = parallel.everybody(list(totals))
    keys = dict.fromkeys(key for each in by_process for key in each)
    return {key: torch.cat(parallel.gathered(totals.get(key, []))) for key in keys}


def _outputs(site: Site) -> tuple[list[StructureKind], list[int]]:
    """What the outputs of the first layer belong to, and how many there are of each part."""
    operator: Any = site.operator
    if site.kind == "attention":
        return ["query_key", "query_key", "value"], list(operator.widths)
    count = 1 + gates(site.block)
    return ["hidden"] * count, [site.last.in_features] * count
