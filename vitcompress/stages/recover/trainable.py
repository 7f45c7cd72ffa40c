"""What of a model is trained, and the zeros that stay."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitcompress.model.families import anatomy_of
from vitcompress.stages.recover.config import Parameters
from vitcompress.stages.recover.straight_through import StraightThrough


@dataclass(frozen=True)
class Trainable:
    """`module`, whose quantized layers are `StraightThrough`, and its parameters to train, by name.

    `masks`: by name of a parameter, True where it stays zero.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    masks: Mapping[str, Tensor]

    @torch.no_grad()
    def keep_zeros(self) -> None:
        """Put zeros back where they were (in place)."""
        for name, mask in self.masks.items():
            self.parameters[name].masked_fill_(mask, 0.0)

    def copied(self) -> dict[str, Tensor]:
        """The values of all parameters as they are now."""
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Take over `values` that were `copied` (in place)."""
        for name, value in values.items():
            self.parameters[name].copy_(value)


def trainable(
    module: nn.Module,
    which: Parameters,
    sites: Sequence[str] = (),
    sparse: Collection[str] = (),
) -> Trainable:
    """Make `module` ready to be trained (in place). `sites`: those that are, of `which: sites`;
    `sparse`: the layers whose zeros are not stored. Zeros of other quantized layers are codes like
    any."""
    anatomy = anatomy_of(module)
    chosen = [site for site in anatomy.sites if site.name in sites]
    within = tuple(f"{name}." for site in chosen for name in (site.name, site.norm_name))
    for name, layer in anatomy.quantized().items():
        module.set_submodule(name, StraightThrough(layer))
    found = {
        name: parameter
        for name, parameter in module.named_parameters()
        if (which == "all" or (which == "sites" and name.startswith(within)))
        or (which == "affine" and parameter.ndim == 1)
    }
    for parameter in found.values():
        parameter.requires_grad_(True)
    return Trainable(module, found, dict(_zeros(module, found, sparse)))


def finish(module: nn.Module) -> nn.Module:
    """`module` with its quantized layers as they are stored, and no longer trained (in place)."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, StraightThrough):
            module.set_submodule(name, layer.finished())
    return module.requires_grad_(False)


def _zeros(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], sparse: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """The zeros that stay among the weights of linear layers."""
    for name, layer in module.named_modules():
        weight = f"{name}.weight"
        held = isinstance(layer, nn.Linear) or (
            isinstance(layer, StraightThrough) and name in sparse
        )
        if held and weight in parameters:
            zero = layer.weight.detach() == 0
            if zero.any():
                yield weight, zero
