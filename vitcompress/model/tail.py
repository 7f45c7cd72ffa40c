"""The tail: a last block that computes only the tokens that the head reads."""

from dataclasses import replace

from vitcompress.memory import copied
from vitcompress.model.anatomy import Anatomy
from vitcompress.model.architecture import VitModel, set_tail


def tail_obstacle(anatomy: Anatomy) -> str | None:
    """Why the last block cannot compute the prefix tokens only, and the model the same; None where
    it can."""
    if not anatomy.reads_prefix:
        return anatomy.refusals.get("tail", "its head reads more than class and register tokens")
    return anatomy.refusals.get("tail")


def tailed(model: VitModel) -> VitModel | None:
    """`model` whose last block computes only its prefix tokens; None where there is an obstacle."""
    if tail_obstacle(model.anatomy) is not None:
        return None
    module, tokens = copied(model.module), model.anatomy.prefix_tokens
    set_tail(module, tokens)
    architecture = model.architecture.model_copy(update={"tail_tokens": tokens})
    return replace(model, module=module, architecture=architecture)
