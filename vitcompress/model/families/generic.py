"""Any other model: its linear layers can be compressed, and its graph is exported as it is."""

from torch import nn

from vitcompress.model.anatomy import Anatomy, State, Step, all_steps

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
        refusals=dict.fromkeys(("tail", "prune", "embedding", "merge"), _REASON),
    )
