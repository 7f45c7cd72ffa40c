"""Prune: a physically narrower network, and layers refitted to make good for what is gone.

Heads are turned to bases in which their last dimensions matter least, and each structure of each
block gets a curve of what its removal costs, in nats of KL. The budget is spent where it costs
least, and the layers that remain are refitted in closed form, block after block, towards the
outputs of the dense model. No labels and no training are needed.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from vitcompress.console import track
from vitcompress.errors import InputError
from vitcompress.methods.allocation import allocate
from vitcompress.model.architecture import VitModel
from vitcompress.model.layers import Block
from vitcompress.model.sizes import KINDS, Kind, blocks, resize, size_of, sizes_of, with_size
from vitcompress.stages.context import BATCH, Context
from vitcompress.stages.pruning import costs, statistics, structures
from vitcompress.stages.pruning.probe import Probe
from vitcompress.stages.pruning.sequential import refit_in_sequence
from vitcompress.stages.pruning.structures import Axis

_GRADIENT_IMAGES = 128
_HELD_BACK = 64
_ROUNDS = 2

_Share = Annotated[float, Field(gt=0, le=1)]


class Budget(BaseModel):
    """What may be left, as a share of the dense model: one of the keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: _Share | None = None
    params: _Share | None = None
    bytes: _Share | None = None

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("give one of macs, params and bytes")
        return self

    @property
    def only(self) -> tuple[costs.Unit, float]:
        return next(iter(self.model_dump(exclude_none=True).items()))  # type: ignore[return-value]


class PruneConfig(BaseModel):
    """Remove structures.

    `saliency`: what decides which units go. `structures`: what may be narrowed. `multiple`: sizes
    are rounded to it. `floor`: the share of each structure that stays whatever happens.
    `compensate`: refit what stays. `rotate`: turn heads to their principal dimensions first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["prune"] = "prune"
    name: str = "prune"
    saliency: Literal["obs"] = "obs"
    budget: Budget
    structures: tuple[Kind, ...] = KINDS
    multiple: Annotated[int, Field(ge=1)] = 8
    floor: _Share = 0.125
    compensate: bool = True
    rotate: bool = True


@dataclass(frozen=True)
class Spending:
    """What each option of each axis costs, and what may be spent on them."""

    key: str
    share: float
    whole: float
    fixed: float
    costs: list[np.ndarray]

    @classmethod
    def of(cls, model: VitModel, config: PruneConfig, axes: list[Axis]) -> "Spending":
        unit, share = config.budget.only
        meter = costs.meter(model, unit)
        spent = [meter(axis) for axis in axes]
        return cls(
            key=f"stages.{config.name}.budget.{unit}",
            share=share,
            whole=costs.total(costs.baseline(model), unit),
            fixed=costs.total(model, unit) - sum(float(cost[0]) for cost in spent),
            costs=spent,
        )

    def cheapest(self, losses: list[np.ndarray]) -> list[int]:
        """The options of least summed loss within the budget, one of each axis."""
        found = allocate(losses, self.costs, self.share * self.whole - self.fixed)
        if found is None:
            least = (self.fixed + sum(float(cost.min()) for cost in self.costs)) / self.whole
            raise InputError(
                f"{self.key}: {self.share:g} cannot be met; at least {math.ceil(1e4 * least) / 1e4}"
                " remains of the dense model with these structures and floor: ask for no less, "
                "lower floor, or name more structures"
            )
        return found


def prune(
    model: VitModel, config: PruneConfig, context: Context
) -> tuple[VitModel, dict[str, Any]]:
    """Return the narrower model, and what was removed where for the report.

    Raises `InputError` for a model whose blocks are unknown and for a budget that cannot be met.
    """
    checked(model, config)
    module = copy.deepcopy(model.module)
    prefix = int(cast(Any, module).num_prefix_tokens)
    tails = [block.tokens for block in blocks(module)]
    for block in blocks(module):
        block.tokens = None
    structures.absorb_layer_scale(module)
    fit, held = _split(context)
    pixels = [p.to(context.device) for p in held.calibration_batches("reading images")]
    importance = statistics.importances(
        module,
        islice(_on_device(fit, "weighing outputs"), -(-_GRADIENT_IMAGES // BATCH)),
        prefix,
        context.seed,
    )
    moments = statistics.moments(module, _on_device(fit, "calibrating"), importance, prefix)
    worth = structures.rotate(module, config.structures, moments, importance)
    axes = [
        structures.axis(
            module,
            number,
            kind,
            moments,
            importance,
            worth.get((number, kind)),
            config.multiple,
            config.floor,
        )
        for number, block in enumerate(blocks(module))
        for kind in config.structures
        if structures.supported(block, kind)
    ]
    probe = Probe(module, torch.cat(pixels))

    def changed(chosen: Mapping[int, int]) -> dict[int, Block]:
        """The blocks narrowed to the options of the axes with these numbers."""
        kept: dict[int, dict[Kind, Tensor]] = {}
        for index, option in chosen.items():
            axis = axes[index]
            if option:
                kept.setdefault(axis.block, {})[axis.kind] = axis.kept(option)
        return {
            number: structures.narrowed(
                blocks(module)[number],
                rows,
                {part: moments.inputs[number, part] for part in ("attn", "mlp")}
                if config.compensate
                else None,
            )
            for number, rows in kept.items()
        }

    spending = Spending.of(model, config, axes)
    measured: list[dict[int, float]] = [{0: 0.0} for _ in axes]
    chosen = spending.cheapest([axis.losses for axis in axes])
    for round_ in range(_ROUNDS):
        where = [len(axis.sizes) // 2 for axis in axes] if round_ == 0 else chosen
        for index, option in enumerate(track(where, "measuring structures", len(where))):
            if option not in measured[index]:
                measured[index][option] = probe.kl(changed({index: option}))
        curves = [_calibrated(axis.losses, seen) for axis, seen in zip(axes, measured, strict=True)]
        chosen = spending.cheapest(curves)
        if __import__("os").environ.get("DBG"):
            for a, s in zip(axes, measured):
                print(
                    a.block,
                    a.kind,
                    {a.sizes[o]: (round(v, 5), float(a.losses[o])) for o, v in sorted(s.items())},
                    flush=True,
                )
    narrow = changed(dict(enumerate(chosen)))
    result = copy.deepcopy(module)
    for number, block in narrow.items():
        cast(Any, result).blocks[number] = block
    details: dict[str, Any] = {"kl_held_back": probe.kl(narrow)}
    if config.compensate:
        again = copy.deepcopy(result)
        refit_in_sequence(module, again, _marked(fit, held), importance, prefix, context.cache)
        blocks_again = dict(enumerate(blocks(again)))
        details["kl_refitted"] = probe.kl(blocks_again)
        if details["kl_refitted"] < details["kl_held_back"]:
            result = again
    for block, tail in zip(blocks(result), tails, strict=True):
        block.tokens = tail
    return _described(model, result), {
        **details,
        "blocks": _table(model.module, result),
    }


def plan(model: VitModel, config: PruneConfig) -> tuple[VitModel, dict[str, Any]]:
    """A model that meets the budget with all structures narrowed about evenly, tensors empty.

    Which block can spare most only the images tell.
    """
    checked(model, config)
    module = copy.deepcopy(model.module)
    axes = [
        Axis(number, kind, torch.zeros(1, 1), sizes, _even(sizes))
        for number, block in enumerate(blocks(module))
        for kind in config.structures
        if structures.supported(block, kind)
        for sizes in [structures.options(size_of(block, kind), config.multiple, config.floor)]
    ]
    chosen = Spending.of(model, config, axes).cheapest([axis.losses for axis in axes])
    for axis, option in zip(axes, chosen, strict=True):
        block = blocks(module)[axis.block]
        resize(block, with_size(sizes_of(block), axis.kind, axis.sizes[option]))
    return _described(model, module), {
        "budget": config.budget.model_dump(exclude_none=True),
        "widths": "evenly; a run chooses them by what the images show",
    }


def checked(model: VitModel, config: PruneConfig) -> None:
    """Raise `InputError` where `model` has nothing of what `config` wants to narrow."""
    key = f"stages.{config.name}"
    if not blocks(model.module):
        raise InputError(
            f"{key}: {model.architecture.timm} is no plain ViT of float blocks; take the stage "
            "out of the recipe, or put it before quantize"
        )
    for kind in config.structures:
        if not any(structures.supported(block, kind) for block in blocks(model.module)):
            raise InputError(
                f"{key}.structures: {kind} cannot be narrowed in {model.architecture.timm}; "
                "take it out of the list"
            )


def _even(sizes: list[int]) -> np.ndarray:
    return (1 - np.array(sizes) / sizes[0]) ** 2 * sizes[0]


def _described(model: VitModel, module: nn.Module) -> VitModel:
    """`module` with the description that belongs to it."""
    sizes = tuple(sizes_of(block) for block in blocks(module))
    architecture = model.architecture.model_copy(update={"blocks": sizes})
    return replace(model, module=module, architecture=architecture)


def _calibrated(losses: np.ndarray, measured: Mapping[int, float]) -> np.ndarray:
    """A curve scaled so that it passes through what was `measured`, KL by option."""
    places = sorted(option for option in measured if option and losses[option] > 0)
    scales = [measured[option] / losses[option] for option in places]
    if not places:
        return losses
    curve = losses * np.interp(np.arange(len(losses)), places, scales)
    return np.maximum.accumulate(curve)


def _split(context: Context) -> tuple[Context, Context]:
    images = context.images
    count = max(1, min(_HELD_BACK, len(images) // 8))
    names = range(len(images))
    return (
        replace(context, calibration=images.subset(names[:-count])),
        replace(context, calibration=images.subset(names[-count:])),
    )


def _on_device(context: Context, description: str) -> Iterator[Tensor]:
    return (pixels.to(context.device) for pixels in context.calibration_batches(description))


def _marked(fit: Context, held: Context) -> Iterator[tuple[Tensor, bool]]:
    for context in (fit, held):
        for pixels in _on_device(context, "embedding"):
            yield pixels, context is held


def _table(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    rows = []
    for number, (old, new) in enumerate(zip(blocks(before), blocks(after), strict=True)):
        sizes = sizes_of(new)
        attention = sizes.attention
        rows.append(
            {
                "block": f"blocks.{number}",
                "query_key": 0 if attention is None else attention.query_key,
                "value": 0 if attention is None else attention.value,
                "hidden": sizes.hidden or 0,
            }
        )
    return rows
