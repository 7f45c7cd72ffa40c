"""Merge: fewer tokens for the same image."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from vitcompress.errors import InputError
from vitcompress.measure.branches import LatencyTable
from vitcompress.measure.cost import dense_macs
from vitcompress.measure.tokens import schedule_latency, schedule_macs, sequence_length
from vitcompress.methods import schedule as schedules
from vitcompress.model.architecture import VitModel, set_merging, set_tail, unfilled
from vitcompress.model.layers import Block
from vitcompress.model.merging import Merging, Method
from vitcompress.model.structure import placed
from vitcompress.stages.context import Context
from vitcompress.stages.merge_pictures import pictures
from vitcompress.stages.merge_rival import compared
from vitcompress.stages.merge_search import readers, search, sensitivities
from vitcompress.stages.merge_task import Task

_Share = Annotated[float, Field(gt=0, le=1)]


class MergeBudget(BaseModel):
    """What may be left, as a share of the dense model: one of the keys.

    `latency` is that of onnxruntime on this machine, one thread, one image at a time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: _Share | None = None
    latency: _Share | None = None

    @model_validator(mode="after")
    def _one(self) -> "MergeBudget":
        if (self.macs is None) == (self.latency is None):
            raise ValueError("give either macs or latency")
        return self


class MergeConfig(BaseModel):
    """Compute fewer tokens.

    `method: cls_only_tail` leaves out, exactly and for free, what nobody reads: after the last
    attention only the class and register tokens go on to the head. The other methods include it
    and merge tokens between attention and MLP: `fisher` those whose merging changes the answer
    least by its gradients, `diffrate` the least attended, `tome` the most similar, `mctf` weighs
    both, `ppt` drops or merges by image, `evit` fuses all unattended ones.

    `schedule`: `search` finds how many tokens each block keeps from `images` calibration images;
    `constant`, `decreasing`, `published` and `stepped` are shapes fitted to the budget;
    `deit_small@2.9` and the like are schedules of DiffRate's authors; a list gives the tokens kept
    after each block or, for `diffrate`, pairs of those left after dropping and after merging.
    `proportional`: merged tokens count in attention by their size (off for MAE models).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["merge"] = "merge"
    name: str = "merge"
    method: Literal[Method, "cls_only_tail"] = "cls_only_tail"
    budget: MergeBudget | None = None
    schedule: str | tuple[int | tuple[int, int], ...] = "search"
    images: Annotated[int, Field(ge=8)] = 256
    proportional: bool = True

    @field_validator("schedule", mode="after")
    @classmethod
    def _known(cls, value: Any) -> Any:
        known = ("search", *schedules.SHAPES, *schedules.PUBLISHED)
        if isinstance(value, str) and value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(known)}, nor a list")
        return value

    @model_validator(mode="after")
    def _budget_where_needed(self) -> "MergeConfig":
        fitted = self.schedule == "search" or self.schedule in schedules.SHAPES
        if self.method == "cls_only_tail":
            for key in ("budget", "schedule", "images", "proportional"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key}: cls_only_tail has none; take it out, or change method"
                    )
        elif fitted and self.budget is None:
            raise ValueError("budget: missing; add for example {macs: 0.65}")
        elif not fitted and self.budget is not None:
            raise ValueError("budget: an explicit schedule has none; take one of the two out")
        return self


def merge(
    model: VitModel, config: MergeConfig, context: Context
) -> tuple[VitModel, dict[str, Any]]:
    """Return the model that computes fewer tokens, and what was chosen for the report.

    Raises `InputError` for a model whose blocks or head the method cannot handle, and for a budget
    or a schedule that cannot be met.
    """
    if config.method == "cls_only_tail":
        return plan(model, config)
    task = _placed(_task(model, config, context), context)
    dropped: tuple[int, ...] = ()
    tensors = readers(task, context, config.images)
    if config.schedule == "search":
        kept, found = search(task, context, config.images, tensors)
    else:
        kept, dropped, found = _given(task, config)
    merged, details = _scheduled(task, kept, dropped, found, tensors)
    shown = pictures(merged, context)
    merged.module.cpu()
    rival = compared(model, merged, context, config.images)
    idle = set(kept) == {task.tokens}
    warnings = [f"{task.where}: nothing merges, the model is within its budget"] if idle else []
    return merged, {**details, **rival, "token_maps": shown, "warnings": warnings}


def plan(model: VitModel, config: MergeConfig) -> tuple[VitModel, dict[str, Any]]:
    """As `merge`; in place of a search, which needs images, a published shape at its cost.

    A budget of latency is taken as one of multiply-accumulates, since nothing is measured.
    """
    if config.method == "cls_only_tail":
        tokens = prefix_tokens(model, config)
        return tailed(model, tokens), {"method": config.method, "tokens_in_last_block": tokens}
    task = _task(model, config)
    return _scheduled(task, *_given(task, config))


def _given(
    task: Task, config: MergeConfig
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Tokens kept and dropped in each block by a schedule that needs no images."""
    schedule = config.schedule
    found = {"schedule": schedule}
    if isinstance(schedule, tuple):
        return *task.explicit(schedule), {"schedule": "explicit"}
    if schedule in schedules.PUBLISHED:
        return *task.published(schedule), found
    if config.budget is not None and config.budget.latency is not None and task.unit == "macs":
        return task.fitted("published"), (), found  # what it costs is not known before it is timed
    if schedule == "search":
        kept = task.fitted("published")
        return kept if task.cost(kept) <= task.limit else task.shaped("constant"), (), found
    return task.shaped(schedule), (), found


def sensitivity(model: VitModel, config: MergeConfig, context: Context) -> list[dict[str, Any]]:
    """What merging in one block alone would cost, by the share of its tokens that stay."""
    if config.method == "cls_only_tail":
        return []
    return sensitivities(_placed(_task(model, config), context), context, config.images)


def tailed(model: VitModel, tokens: int) -> VitModel:
    """`model` whose last block computes only the first `tokens` tokens."""
    module = copy.deepcopy(model.module)
    set_tail(module, tokens)
    architecture = model.architecture.model_copy(update={"tail_tokens": tokens})
    return replace(model, module=module, architecture=architecture)


def _task(model: VitModel, config: MergeConfig, context: Context | None = None) -> Task:
    """What has to be scheduled; latencies are measured only with a `context`.

    Raises `InputError` for a model that cannot merge tokens.
    """
    assert config.method != "cls_only_tail"
    where, name = f"stages.{config.name}", model.architecture.timm
    module: Any = model.module
    blocks = list(getattr(module, "blocks", ()))
    fixed = hasattr(getattr(module, "patch_embed", None), "num_patches")
    if not (blocks and fixed and all(isinstance(block, Block) for block in blocks)):
        raise InputError(
            f"{where}: {name} is no plain ViT, and tokens that sit in windows or on a grid, or in "
            "other numbers for each image, cannot be merged: take the stage out of the recipe"
        )
    for part, what in (("attn", "attention"), ("mlp", "mlp")):
        if any(getattr(block, part) is None for block in blocks):
            raise InputError(
                f"{where}: a block without its {what} cannot merge tokens: leave `{what}` out of "
                "the structures that are pruned"
            )
    if model.architecture.merging is not None:
        raise InputError(f"{where}: the model already merges tokens: leave one merge stage only")
    if model.architecture.quantized:
        raise InputError(f"{where}: put it before quantize, whose ranges must fit merged tokens")
    if reads_prefix_only(model) and model.architecture.tail_tokens is None:
        model = tailed(model, int(module.num_prefix_tokens))
    budget = config.budget or MergeBudget(macs=1)
    merging = Merging(
        method=config.method,
        kept=(sequence_length(model),) * len(blocks),
        proportional=config.proportional,
        unmixed=len(blocks) // 4 if config.method == "fisher" else 0,
    )
    dense = dense_macs(model)
    share = cast(float, budget.macs or budget.latency)
    limit = share * dense if config.budget else math.inf
    task = Task(where, model, merging, "macs", schedule_macs(model, merging), limit, dense)
    if task.blocks == 0:
        raise InputError(
            f"{where}: {name} has one block, which computes nothing after attention but what the "
            "head reads: take the stage out of the recipe"
        )
    if budget.latency is None or context is None:
        return task
    with context.latencies() as table:
        return _timed(task, share, table)


def _placed(task: Task, context: Context) -> Task:
    """`task` with its model on the device of `context`."""
    module = placed(task.model.module, context.device)
    return replace(task, model=replace(task.model, module=module))


def _timed(task: Task, share: float, table: LatencyTable) -> Task:
    """`task` with a budget of latency, measured where it is not in `table`."""
    whole = task.cost((task.tokens,) * task.all_blocks)
    some = task.merging_to(replace(task, limit=0.75 * whole).fitted("constant"))
    cost = schedule_latency(task.model, some, table)
    dense = table.rest(unfilled(task.model), branches=0.0)
    return replace(task, unit="latency", cost=cost, limit=share * dense, dense=dense)


def _scheduled(
    task: Task,
    kept: tuple[int, ...],
    dropped: tuple[int, ...],
    found: dict[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
) -> tuple[VitModel, dict[str, Any]]:
    """The model of `task` with this schedule, and the details of the stage."""
    merging = task.merging_to(kept, dropped)
    module: Any = copy.deepcopy(task.model.module)
    set_merging(module, merging)
    if tensors is not None:
        module.blocks.fill(tensors)
    architecture = task.model.architecture.model_copy(update={"merging": merging})
    details = {
        "method": merging.method,
        f"{task.unit}_ratio": task.cost(kept) / task.dense,
        "tokens": task.tokens,
        "kept": ", ".join(map(str, kept)),
        **found,
        "blocks": [{"block": f"blocks.{i}", "kept": count} for i, count in enumerate(kept)],
    }
    return replace(task.model, module=module, architecture=architecture), details


def prefix_tokens(model: VitModel, config: MergeConfig) -> int:
    """How many tokens the head of `model` reads, all at the front.

    Raises `InputError` where that is not known to be exact.
    """
    if not reads_prefix_only(model):
        raise InputError(
            f"stages.{config.name}.method: cls_only_tail needs a plain ViT whose head reads only "
            f"the class token; {model.architecture.timm} is none: take the stage out of the recipe"
        )
    return int(cast(Any, model.module).num_prefix_tokens)


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
