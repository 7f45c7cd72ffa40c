"""What can be removed from a model and what that costs, measured on calibration images."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vitcompress.console import track
from vitcompress.errors import InputError
from vitcompress.methods.compensation import Fit
from vitcompress.methods.knapsack import Option, choose
from vitcompress.model.architecture import VitModel
from vitcompress.model.embedding import obstacle, readers
from vitcompress.model.layers import Block
from vitcompress.model.sizes import blocks, sizes_of
from vitcompress.stages.context import Context
from vitcompress.stages.prune import costs, narrowing, statistics, structures
from vitcompress.stages.prune.config import Kind, PruneConfig
from vitcompress.stages.prune.embedding import Embedding, embedding
from vitcompress.stages.prune.narrowing import Choice
from vitcompress.stages.prune.probe import Probe
from vitcompress.stages.prune.statistics import Branch, Importance, Sample
from vitcompress.stages.prune.structures import Axis

_GRADIENT_IMAGES = 128
_HELD_BACK = 64
_DAMPINGS = (1e-3, 1e-2, 1e-1)


Chosen = dict[int, dict[Kind, int]]
"""The option of each structure that is narrowed, by block and structure."""


@dataclass
class Study:
    """A model prepared for pruning, the axes along which it can be, and images to judge by.

    `module` computes what the model computes, on all tokens in all blocks, heads turned to their
    principal dimensions. `fit` and `held`: the calibration images to fit to, and those held back.
    """

    module: nn.Module
    prefix_tokens: int
    importance: dict[Branch, Importance]
    fits: dict[Branch, Fit]
    axes: list[Axis]
    fit: Context
    held: Context
    probe: Probe
    compensate: bool
    embedding: Embedding | None

    def axes_of(self, number: int) -> list[Axis]:
        return [axis for axis in self.axes if axis.block == number]

    def narrowed(self, choices: Mapping[int, Choice]) -> dict[int, Block]:
        """The blocks after a choice for each, by number; blocks that stay whole are left out."""
        return self._made(choices, self.compensate)

    def cut(self, choices: Mapping[int, Choice]) -> dict[int, Block]:
        """`narrowed` without any refit."""
        return self._made(choices, compensate=False)

    def _made(self, choices: Mapping[int, Choice], compensate: bool) -> dict[int, Block]:
        made = {}
        for number, choice in choices.items():
            if any(choice.values()):
                block = blocks(self.module)[number]
                fits = {
                    part: self.fits[number, part]
                    for part in ("attn", "mlp")
                    if getattr(block, part) is not None
                }
                given = fits if compensate else None
                made[number] = narrowing.narrowed(block, self.axes_of(number), choice, given)
        return made

    def kl(self, choices: Mapping[int, Choice]) -> float:
        """KL(dense ‖ narrowed) on the images held back, in nats."""
        return self.probe.kl(self.narrowed(choices))

    def measure(self, wanted: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """The KL of each axis narrowed alone, by option, for the options `wanted` of each."""
        found: list[dict[int, float]] = [{0: 0.0} for _ in self.axes]
        pairs = [(i, option) for i, each in enumerate(wanted) for option in each if option]
        for index, option in track(pairs, "measuring structures", len(pairs)):
            axis = self.axes[index]
            found[index][option] = self.kl({axis.block: {axis.kind: option}})
        return found


def study(model: VitModel, config: PruneConfig, context: Context) -> Study:
    """Collect all that is needed to choose what to remove.

    Raises `InputError` for a model that cannot be pruned and for too few images.
    """
    kinds = checked(model, config)
    if config.targets == "labels" and context.images.labels is None:
        raise InputError(
            f"stages.{config.name}.targets: the calibration images have no labels; put them in "
            "one folder a class, or take targets: sampled"
        )
    module = copy.deepcopy(model.module).to(context.device)
    for block in blocks(module):
        block.tokens = None
    structures.absorb_layer_scale(module)
    prefix_tokens = int(cast(Any, module).num_prefix_tokens)
    fit, held = _split(context, config)

    def sample(title: str) -> Iterator[Sample]:
        for batch in fit.labelled_batches(title, _GRADIENT_IMAGES):
            labels = batch.labels if config.targets == "labels" else None
            yield batch.pixels.to(context.device), labels

    importance = statistics.importances(
        module,
        statistics.last_layers(module),
        sample("weighing outputs"),
        prefix_tokens,
        context.seed,
    )
    moments = statistics.moments(module, on_device(fit, "calibrating"), importance, prefix_tokens)
    if config.rotate:
        structures.rotate(module, kinds, moments, importance)
    worth = structures.worths(
        module, config, moments, importance, sample("ranking units"), context.seed
    )
    judges = moments  # one damping needs no judging
    if config.compensate:
        judges = statistics.moments(module, on_device(held, "judging"), importance, prefix_tokens)
    fits: dict[Branch, Fit] = {}
    axes: list[Axis] = []
    found = statistics.branches(module)
    for branch in track(found, "choosing units", len(found)):
        metric, judge = importance[branch].metric, judges.inputs[branch]
        tried: list[tuple[float, Fit, list[Axis]]] = []
        for damping in _DAMPINGS if config.compensate else _DAMPINGS[:1]:
            given = Fit(moments.inputs[branch], damping)
            own = structures.axes(module, branch, kinds, config, given, metric, worth)
            error = narrowing.error(blocks(module)[branch[0]], own, given, metric, judge)
            tried.append((error, given, own))
        _, fits[branch], own = min(tried, key=lambda each: each[0])
        axes += own
    for axis in axes:
        if axis.kind == "query_key":
            axis.normed = moments.query_key[axis.block].normed
    stream = None
    if "embedding" in config.structures:
        norms = {reader.name: reader.norm for reader in readers(module)}
        worth_of_norms = statistics.importances(
            module, norms, sample("weighing the stream"), prefix_tokens, context.seed
        )
        batches = on_device(fit, "turning the stream")
        stream = embedding(module, batches, worth_of_norms, prefix_tokens)
    probe = Probe(module, torch.cat(list(on_device(held, "reading images"))))
    return Study(
        module,
        prefix_tokens,
        importance,
        fits,
        axes,
        fit,
        held,
        probe,
        config.compensate,
        stream,
    )


def checked(model: VitModel, config: PruneConfig) -> list[Kind]:
    """The structures of blocks that `config` wants to narrow.

    Raises `InputError` where `model` has no blocks that can be narrowed, or lacks a structure.
    """
    key, name = f"stages.{config.name}", model.architecture.timm
    if not blocks(model.module):
        raise InputError(
            f"{key}: {name} has no plain float blocks to narrow; take the stage out of the recipe, "
            "or put it before quantize"
        )
    if model.architecture.merging is not None:
        raise InputError(f"{key}: put it before merge, whose schedule must fit the narrower blocks")
    kinds = [kind for kind in dict.fromkeys(config.structures) if kind != "embedding"]
    if len(kinds) < len(set(config.structures)) and (reason := obstacle(model.module)) is not None:
        raise InputError(
            f"{key}.structures: embedding cannot be narrowed in {name}: {reason}; take it out"
        )
    for kind in kinds:
        if not any(structures.supported(block, kind) for block in blocks(model.module)):
            raise InputError(f"{key}.structures: {kind} cannot be narrowed in {name}; take it out")
    return kinds


def calibrated(axis: Axis, measured: Mapping[int, float]) -> Axis:
    """`axis` with its curve scaled to pass through what was `measured`, KL by option.

    Between measured options the scale changes linearly; beyond them it stays. Never falling.
    """
    places = sorted(option for option in measured if axis.losses[option] > 0)
    if not places:
        return axis
    scales = [measured[option] / axis.losses[option] for option in places]
    curve = axis.losses * np.interp(np.arange(len(axis.losses)), places, scales)
    return replace(axis, losses=np.maximum.accumulate(curve))


def spend(model: VitModel, config: PruneConfig, axes: Sequence[Axis], meter: costs.Meter) -> Chosen:
    """What to remove of each block so that the budget is met at the least summed loss.

    Raises `InputError` where the budget cannot be met.
    """
    unit, share = config.budget.only
    parts: dict[Branch, list[Axis]] = {}
    for axis in axes:
        parts.setdefault(axis.branch, []).append(axis)
    fixed, choices, items = meter.fixed, [], []
    full = [sizes_of(block) for block in blocks(model.module)]
    for branch in statistics.branches(model.module):
        if branch not in parts:
            fixed += meter.branch(branch, full[branch[0]])
    for branch, own in parts.items():
        choices.append(narrowing.choices(own))
        after = [narrowing.sizes_after(full[branch[0]], own, choice) for choice in choices[-1]]
        items.append(
            [
                Option(ceil(meter.branch(branch, sizes)), narrowing.loss(own, choice))
                for choice, sizes in zip(choices[-1], after, strict=True)
            ]
        )
    room = floor(share * meter.whole - fixed)
    whole = sum(options[0].weight for options in items)
    found = [0] * len(items) if whole <= room else choose(items, room)
    if found is None:
        cheapest = sum(min(option.weight for option in options) for options in items)
        least = (fixed + cheapest) / meter.whole
        raise InputError(
            f"stages.{config.name}.budget.{unit}: {share:g} cannot be met; with these structures "
            f"and floor {np.ceil(1e4 * least) / 1e4:g} of the dense model is the least: ask for no "
            "less, lower floor, or name more structures"
        )
    result: Chosen = {}
    for branch, options, chosen in zip(parts, choices, found, strict=True):
        result.setdefault(branch[0], {}).update(options[chosen])
    return result


def even(axes: Sequence[Axis]) -> list[Axis]:
    """The axes with curves under which all structures are narrowed by about the same share."""

    def curve(axis: Axis) -> np.ndarray:
        removed = 1 - np.array(axis.sizes) / axis.sizes[0]
        return np.asarray(removed**2 * (1.0 if axis.kind != "hidden" else 4.0))

    return [replace(axis, losses=curve(axis)) for axis in axes]


def on_device(context: Context, title: str) -> Iterator[Tensor]:
    return (pixels.to(context.device) for pixels in context.calibration_batches(title))


def _split(context: Context, config: PruneConfig) -> tuple[Context, Context]:
    images = context.images
    count = min(_HELD_BACK, len(images) // 4)
    if count < 2:
        raise InputError(
            f"stages.{config.name}: {len(images)} calibration images are too few to fit to some "
            "and judge on others; give at least 8"
        )
    everything = range(len(images))
    return (
        replace(context, calibration=images.subset(everything[:-count])),
        replace(context, calibration=images.subset(everything[-count:])),
    )
