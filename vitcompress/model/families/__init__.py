"""Families of models: one file a family, from a module of timm to ours, and to its anatomy.

Each file has `matches(module)`, for a module of timm and for what `adopt` makes of it;
`adopt(module)`, which puts our modules in the place of timm's; and `anatomy(module)`. What no
family knows is `generic`: its linear layers can be compressed, and its graph is exported as it is.
"""

from typing import Protocol, cast

from torch import nn

from vitcompress.model.anatomy import Anatomy
from vitcompress.model.families import generic, plain, rotary


class Family(Protocol):
    """What a file of this folder offers."""

    def matches(self, module: nn.Module) -> bool: ...

    def adopt(self, module: nn.Module) -> nn.Module: ...

    def anatomy(self, module: nn.Module) -> Anatomy: ...


FAMILIES = cast(tuple[Family, ...], (plain, rotary))


def family_of(module: nn.Module) -> Family:
    return next((f for f in FAMILIES if f.matches(module)), cast(Family, generic))


def adopt(module: nn.Module) -> nn.Module:
    """Put our modules in the place of timm's, switch to eval mode, drop gradients.

    The model may come back as another module. Raises `InputError` for a model of a known family
    that computes what our modules do not.
    """
    module.eval()
    return family_of(module).adopt(module).eval().requires_grad_(False)


def anatomy_of(module: nn.Module) -> Anatomy:
    """The anatomy of an adopted `module`, as it is now."""
    return family_of(module).anatomy(module)
