"""Any other model: its linear layers can be compressed, and its graph is exported as it is."""

from typing import Any, cast, get_args

from torch import nn

from vitcompress.model.anatomy import Alteration, Anatomy, State, Step, all_steps
from vitcompress.model.head import HeadPlace

_REASON = "its blocks are not of a kind that is known"


def matches(module: nn.Module) -> bool:
    return True


def adopt(module: nn.Module) -> nn.Module:
    return module


def anatomy(module: nn.Module) -> Anatomy:
    steps = (Step("", module),)
    return Anatomy(
        family="generic",
        module=module,
        steps=steps,
        start=State,
        advance=all_steps(steps),
        finish=lambda state: state.x,
        head=_heads(module, (nn.Identity,)),
        called=getattr(module, "called_linears", None),
        obstacles=lambda: dict.fromkeys(get_args(Alteration), _REASON),
    )


def head_place(module: nn.Module) -> HeadPlace:
    found = _heads(module)
    return HeadPlace(layers=found[0] if len(found) == 1 else None)


def _heads(module: nn.Module, besides: tuple[type[nn.Module], ...] = ()) -> tuple[str, ...]:
    """The names of what timm calls the classifier, of which there may be several."""
    if not hasattr(module, "get_classifier"):
        return ()
    found: Any = cast(Any, module).get_classifier()
    layers = found if isinstance(found, tuple) else (found,)
    return tuple(
        name
        for name, part in module.named_modules()
        if not isinstance(part, besides) and any(part is layer for layer in layers)
    )
