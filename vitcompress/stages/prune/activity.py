"""How often hidden units do something: how many are near zero, for a token and for an image."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vitcompress import parallel
from vitcompress.details import Row, Table
from vitcompress.methods.saliency import active
from vitcompress.model.anatomy import Anatomy
from vitcompress.stages.observe import Watch, observe, unlabelled


@dataclass(frozen=True)
class Activity:
    """Of the hidden units of an MLP. `active` [units]: for how many tokens each is not near zero.
    `idle` []: units that are near zero for all tokens of an image, summed over images. `tokens` []
    and `images` []: how many were seen."""

    active: Tensor
    idle: Tensor
    tokens: Tensor
    images: Tensor

    @classmethod
    def of(cls, hidden: Tensor) -> "Activity":
        """Of `hidden` [images, tokens, units], as the layer behind the activation gets them."""
        seen = active(hidden)
        images, tokens, _ = hidden.shape
        counts = (seen.sum((0, 1)), (~seen.any(1)).sum(), torch.tensor(images * tokens))
        return cls(*(each.double().cpu() for each in (*counts, torch.tensor(images))))

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.active, self.idle, self.tokens, self.images)

    def plus(self, other: "Activity") -> "Activity":
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return Activity(*(a + b for a, b in pairs))

    @property
    def frequency(self) -> Tensor:
        """The share of tokens that each unit is not near zero for, [units]."""
        return self.active / self.tokens


def activities(anatomy: Anatomy, batches: Iterable[Tensor]) -> dict[str, Activity]:
    """Of all MLPs, by site, on `batches` of pixels."""
    found = dict[str, Activity]()

    def see(name: str, hidden: Tensor, _: Tensor, __: Tensor | None) -> None:
        one = Activity.of(hidden.flatten(1, -2))
        found[name] = found[name].plus(one) if name in found else one

    sites = [site for site in anatomy.sites if site.kind == "mlp"]
    watches = [Watch(site.last_name, partial(see, site.name)) for site in sites]
    observe(anatomy.module, watches, unlabelled(batches))
    return parallel.summed_each({n: each.tensors() for n, each in found.items()}, Activity)


def activity_table(found: dict[str, Activity]) -> Table:
    """By MLP: the share of hidden values that are near zero, and how many units are for all tokens
    of an image, on average, and of all images."""
    rows: list[Row] = [
        {
            "site": name,
            "units": len(each.active),
            "near_zero_share": 1 - float(each.frequency.mean()),
            "idle_units_per_image": float(each.idle / each.images),
            "units_never_active": int((each.active == 0).sum()),
        }
        for name, each in found.items()
    ]
    caption = "Hidden values that are near zero, as a share of all"
    return Table.of("hidden_activity", rows, {"near_zero_share": caption})
