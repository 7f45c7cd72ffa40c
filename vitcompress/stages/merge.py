"""Merge: fewer tokens for the same image."""

import copy
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel, set_tail
from vitcompress.model.layers import Block
from vitcompress.stages.context import Context


class MergeConfig(BaseModel):
    """Compute fewer tokens.

    `method: cls_only_tail` leaves out, exactly and for free, what nobody reads: after the last
    attention only the class and register tokens go on to the head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["merge"] = "merge"
    name: str = "merge"
    method: Literal["cls_only_tail"] = "cls_only_tail"


def merge(
    model: VitModel, config: MergeConfig, context: Context
) -> tuple[VitModel, dict[str, Any]]:
    """Return the model that computes fewer tokens, and what was chosen for the report.

    Raises `InputError` for a model that reads more than its prefix tokens at the end.
    """
    return plan(model, config)


def plan(model: VitModel, config: MergeConfig) -> tuple[VitModel, dict[str, Any]]:
    """As `merge`, which for `cls_only_tail` needs no images."""
    tokens = prefix_tokens(model, config)
    module = copy.deepcopy(model.module)
    set_tail(module, tokens)
    architecture = model.architecture.model_copy(update={"tail_tokens": tokens})
    details = {"method": config.method, "tokens_in_last_block": tokens}
    return replace(model, module=module, architecture=architecture), details


def prefix_tokens(model: VitModel, config: MergeConfig) -> int:
    """How many tokens the head of `model` reads, all at the front.

    Raises `InputError` where that is not known to be exact.
    """
    module: Any = model.module
    blocks = getattr(module, "blocks", None)
    known = (
        blocks is not None
        and isinstance(blocks[-1], Block)
        and getattr(module, "global_pool", None) == "token"
        and getattr(module, "attn_pool", None) is None
        and module.num_prefix_tokens > 0
    )
    if not known:
        raise InputError(
            f"stages.{config.name}.method: cls_only_tail needs a plain ViT whose head reads only "
            f"the class token; {model.architecture.timm} is none: take the stage out of the recipe"
        )
    return int(module.num_prefix_tokens)
