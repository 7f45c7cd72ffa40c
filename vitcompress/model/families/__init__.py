"""Families of models: one file a family, from a module of timm to ours, and to its anatomy.

Each file has `matches(module)`, for a module of timm and for what `adopt` makes of it;
`adopt(module)`, which puts our modules in the place of timm's; `anatomy(module)`; and
`head_place(module)`, which tells where in it the head is. What no family knows is `generic`: its
linear layers can be compressed, and its graph is exported as it is.
"""

import pkgutil
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import nn

from vitcompress.errors import InputError
from vitcompress.model.anatomy import Anatomy
from vitcompress.model.head import HeadPlace
from vitcompress.model.modules.block import Block
from vitcompress.model.modules.windows import PatchMerging

InputSize = tuple[int, int, int]
"""Channels, height and width."""


class Family(Protocol):
    """What a file of this folder offers."""

    def matches(self, module: nn.Module) -> bool: ...

    def adopt(self, module: nn.Module) -> nn.Module: ...

    def anatomy(self, module: nn.Module) -> Anatomy: ...

    def head_place(self, module: nn.Module) -> HeadPlace: ...


def _families() -> tuple[Family, ...]:
    """All files of this folder, `generic`, which matches anything, at the end."""
    names = sorted(file.name for file in pkgutil.iter_modules(__path__))
    names.sort(key="generic".__eq__)
    return tuple(cast(Family, import_module(f"{__name__}.{name}")) for name in names)


FAMILIES = _families()


def family_of(module: nn.Module) -> Family:
    return next(family for family in FAMILIES if family.matches(module))


def adopt(module: nn.Module, input_size: InputSize | None = None) -> nn.Module:
    """Put our modules in the place of timm's, switch to eval mode, drop gradients.

    The model may come back as another module. Of a model that has modules of others in its steps,
    the linear layers that are called for pixels of `input_size` (None: as the model says) are
    noted: those alone can be replaced.

    Raises `InputError` for a model of a known family that computes what our modules do not, and for
    one that cannot take these pixels.
    """
    module.eval()
    input_size = input_size or _input_size(module)
    adopted = family_of(module).adopt(module).eval().requires_grad_(False)
    steps = anatomy_of(adopted).steps
    if not all(isinstance(step.module, (Block, PatchMerging)) for step in steps):
        called = called_linears(adopted, input_size)
        adopted.called_linears = called  # type: ignore[assignment]
    return adopted


def anatomy_of(module: nn.Module) -> Anatomy:
    """The anatomy of an adopted `module`, as it is now."""
    return family_of(module).anatomy(module)


def head_place(module: nn.Module) -> HeadPlace:
    """Where the head of `module`, one of timm or adopted, is."""
    return family_of(module).head_place(module)


def called_linears(module: nn.Module, input_size: InputSize) -> frozenset[str]:
    """The names of the linear layers that `module` calls; of others it may read the weights."""
    called: set[str] = set()
    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    handles = [
        layer.register_forward_pre_hook(lambda _, __, name=name: called.add(name))
        for name, layer in layers
    ]
    try:
        module(torch.zeros(1, *input_size))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"the model cannot take pixels {list(input_size)}: {reason}; "
            "set model.options.img_size to the size it was trained for"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(called)


def _input_size(module: nn.Module) -> InputSize:
    """The pixels that a model of timm says it takes."""
    vit = cast(Any, module)
    channels, *size = vit.pretrained_cfg["input_size"]
    given = getattr(getattr(vit, "patch_embed", None), "img_size", None)
    rows, columns = given or size
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    return channels if first is None else first.in_channels, rows, columns
