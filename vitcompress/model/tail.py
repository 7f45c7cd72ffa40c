"""The tail: a last block that computes only the tokens that the head reads."""

import copy
from dataclasses import replace
from typing import Any

from vitcompress.model.architecture import VitModel, set_tail
from vitcompress.model.layers import Block


def tailed(model: VitModel) -> VitModel | None:
    """`model` whose last block computes only its prefix tokens; None where that would change what
    it computes, or may."""
    if not reads_prefix_only(model):
        return None
    module: Any = copy.deepcopy(model.module)
    tokens = int(module.num_prefix_tokens)
    set_tail(module, tokens)
    architecture = model.architecture.model_copy(update={"tail_tokens": tokens})
    return replace(model, module=module, architecture=architecture)


def reads_prefix_only(model: VitModel) -> bool:
    """Whether the head of `model` is known to read nothing but its prefix tokens."""
    module: Any = model.module
    blocks = getattr(module, "blocks", None)
    return (
        blocks is not None
        and isinstance(blocks[-1], Block)
        and getattr(module, "global_pool", None) == "token"
        and getattr(module, "attn_pool", None) is None
        and module.num_prefix_tokens > 0
    )
