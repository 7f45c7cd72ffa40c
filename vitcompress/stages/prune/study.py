"""What can be removed from a model and what that costs, measured on calibration images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil, floor

import numpy as np
import torch
from torch import Tensor, nn

from vitcompress.console import track
from vitcompress.errors import InputError
from vitcompress.memory import copied
from vitcompress.methods.compensation import Fit
from vitcompress.methods.knapsack import Option, solve_knapsack
from vitcompress.model.anatomy import Anatomy, Site
from vitcompress.model.architecture import VitModel
from vitcompress.model.embedding import stream_readers
from vitcompress.model.families import anatomy_of
from vitcompress.model.modules.block import Block
from vitcompress.model.sizes import size_of
from vitcompress.stages.context import Context
from vitcompress.stages.importance import Importance, importances
from vitcompress.stages.observe import Loss, Sample, readout_loss
from vitcompress.stages.probe import Probe
from vitcompress.stages.prune import costs, narrowing, statistics, structures
from vitcompress.stages.prune.activity import Activity
from vitcompress.stages.prune.config import PruneConfig, StructureKind
from vitcompress.stages.prune.embedding import Embedding, embedding
from vitcompress.stages.prune.narrowing import Choice
from vitcompress.stages.prune.statistics import SiteMoments
from vitcompress.stages.prune.structures import Axis
from vitcompress.stages.prune.worth import Evidence, saliency_of, worths

_GRADIENT_IMAGES = 128
_HELD_BACK = 64
_DAMPINGS = (1e-3, 1e-2, 1e-1)


Chosen = dict[str, dict[StructureKind, int]]
"""The option of each structure that is narrowed, by site and structure."""


@dataclass
class PruneStudy:
    """A model prepared for pruning, the axes along which it can be, and images to judge by.

    `anatomy` is of a copy that computes what the model computes, on all tokens in all blocks, heads
    turned to their principal dimensions. `fit` and `held`: the calibration images to fit to, and
    those held back. `activities`: of the hidden units, by site. `measured`: what options of axes,
    by their numbers, were measured to cost.
    """

    anatomy: Anatomy
    importance: dict[str, Importance]
    fits: dict[str, Fit]
    axes: list[Axis]
    fit: Context
    held: Context
    probe: Probe
    compensate: bool
    embedding: Embedding | None
    activities: dict[str, Activity]
    measured: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def module(self) -> nn.Module:
        return self.anatomy.module

    def narrowed(self, chosen: Mapping[str, Choice]) -> dict[str, Block]:
        """The blocks after a choice for each site, by name; those that stay whole are left out."""
        return self._made(chosen, self.compensate)

    def cut(self, chosen: Mapping[str, Choice]) -> dict[str, Block]:
        """`narrowed` without any refit."""
        return self._made(chosen, compensate=False)

    def _made(self, chosen: Mapping[str, Choice], compensate: bool) -> dict[str, Block]:
        names, made = self.anatomy.block_names, dict[str, Block]()
        for site in self.anatomy.sites:
            choice = chosen.get(site.name, {})
            if any(choice.values()):
                name = names[site.number]
                block = made.setdefault(name, copied(site.block))
                own = [axis for axis in self.axes if axis.site == site.name]
                fit = self.fits[site.name] if compensate else None
                narrowing.narrow_site(site, block, own, choice, fit)
        return made

    def measure(self, wanted: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """How far the output is from that of the dense model, on the images held back, with each
        axis narrowed alone, by option, for the options `wanted` of each."""
        pairs = {(i, option) for i, each in enumerate(wanted) for option in each if option}
        new = sorted(pairs - self.measured.keys())
        for index, option in track(new, "measuring structures", len(new)):
            axis = self.axes[index]
            changed = self.narrowed({axis.site: {axis.kind: option}})
            self.measured[index, option] = self.probe.cost(changed)
        return [
            {0: 0.0, **{option: self.measured[i, option] for option in each if option}}
            for i, each in enumerate(wanted)
        ]


def study(model: VitModel, config: PruneConfig, context: Context) -> PruneStudy:
    """Collect all that is needed to choose what to remove.

    Raises `InputError` for a model that cannot be pruned and for too few images.
    """
    kinds = checked(model, config)
    if config.targets == "labels" and context.images.labels is None:
        raise InputError(
            f"stages.{config.name}.targets: the calibration images have no labels; put them in "
            "one folder a class, or take targets: sampled"
        )
    anatomy = anatomy_of(copied(model.module).to(context.device))
    for block in anatomy.blocks:
        block.tokens = None
    anatomy = anatomy_of(anatomy.module)  # which computes more tokens now
    structures.absorb_layer_scale(anatomy.sites)
    fit, held = _split(context, config)

    def samples(title: str) -> Iterator[Sample]:
        for batch in fit.labelled_batches(title, _GRADIENT_IMAGES):
            labels = batch.labels if config.targets == "labels" else None
            yield batch.pixels.to(context.device), labels

    def loss() -> Loss:
        return readout_loss(model.task, torch.Generator().manual_seed(context.seed))

    def weighed(layers: Sequence[str], title: str) -> dict[str, Importance]:
        prefix = anatomy.prefix_tokens
        return importances(anatomy.module, layers, samples(title), loss(), prefix)

    last = weighed([site.last_name for site in anatomy.sites], "weighing outputs")
    importance = {site.name: last[site.last_name] for site in anatomy.sites}
    calibrating = on_device(fit, "calibrating")
    moments = statistics.site_moments(anatomy, calibrating, importance, context.room)
    if config.rotate:
        structures.rotate(anatomy, kinds, moments, importance)
    random = torch.Generator().manual_seed(context.seed)
    titled = partial(samples, "ranking units")
    evidence = Evidence(anatomy, moments, importance, titled, loss, random)
    judges = moments  # one damping needs no judging
    if config.compensate:
        judging = on_device(held, "judging")
        judges = statistics.site_moments(anatomy, judging, importance, context.room)
    fits, axes = _fitted(config, kinds, evidence, judges)
    stream = None
    if "embedding" in config.structures:
        names = [reader.name for reader in stream_readers(anatomy.module)]
        worth_of_norms = weighed(names, "weighing the stream")
        batches = on_device(fit, "turning the stream")
        stream = embedding(anatomy.module, batches, worth_of_norms)
    probe = Probe(anatomy, on_device(held, "reading images"), model.task.distance)
    return PruneStudy(
        anatomy,
        importance,
        fits,
        axes,
        fit,
        held,
        probe,
        config.compensate,
        stream,
        evidence.activities,
    )


def _fitted(
    config: PruneConfig, kinds: Sequence[StructureKind], evidence: Evidence, judges: SiteMoments
) -> tuple[dict[str, Fit], list[Axis]]:
    """What the last layer of each site is refitted by, and the axes of all sites.

    Of several dampings each site gets the one that serves the inputs of `judges` best.
    """
    saliency = saliency_of(config.saliency)
    worth, moments = worths(saliency, evidence), evidence.moments
    fits: dict[str, Fit] = {}
    axes: list[Axis] = []
    sites = evidence.anatomy.sites
    for site in track(sites, "choosing units", len(sites)):
        metric, judge = evidence.importance[site.name].metric, judges.inputs[site.name]
        tried: list[tuple[float, Fit, list[Axis]]] = []
        fits_matter = config.compensate and not (saliency.fold and site.kind == "mlp")
        for damping in _DAMPINGS if fits_matter else _DAMPINGS[:1]:
            given = Fit(moments.inputs[site.name], damping)
            own = structures.axes(site, kinds, config, saliency, given, metric, worth)
            error = narrowing.refit_loss(site, own, given, metric, judge)
            tried.append((error, given, own))
        _, fits[site.name], own = min(tried, key=lambda each: each[0])
        axes += own
    for axis in axes:
        if axis.kind == "query_key":
            axis.normed = moments.query_key[axis.site].normed
    return fits, axes


def checked(model: VitModel, config: PruneConfig) -> list[StructureKind]:
    """The structures of blocks that `config` wants to narrow.

    Raises `InputError` where `model` has no blocks that can be narrowed, or lacks a structure, and
    where labels are to count that its task does not know.
    """
    key, architecture, anatomy = f"stages.{config.name}", model.architecture, model.anatomy
    name = architecture.timm
    if architecture.quantized or architecture.half or architecture.coded:
        raise InputError(f"{key}: put it before quantize, which leaves no float blocks to narrow")
    if architecture.sparse:
        raise InputError(f"{key}: put it before sparsify, whose zeros its refits would fill")
    if architecture.factored:
        raise InputError(f"{key}: put it before sparsify, whose two products have other widths")
    if architecture.merging is not None:
        raise InputError(f"{key}: put it before merge, whose schedule must fit the narrower blocks")
    anatomy.check("prune", key, name)
    if config.targets == "labels" and model.task.labels != "classes":
        raise InputError(
            f"{key}.targets: labels are classes, and the task of the model is {model.task.name}; "
            "take targets: sampled"
        )
    reason = anatomy.refusals.get("embedding")
    if "embedding" in config.structures and reason is not None:
        raise InputError(
            f"{key}.structures: embedding cannot be narrowed in {name}: {reason}; take it out"
        )
    found: list[StructureKind] = []
    for kind in dict.fromkeys(config.structures):
        if kind == "embedding":
            continue
        if not any(structures.supported(site, kind) for site in anatomy.sites):
            raise InputError(f"{key}.structures: {kind} cannot be narrowed in {name}; take it out")
        found.append(kind)
    return found


def calibrated(axis: Axis, measured: Mapping[int, float]) -> Axis:
    """`axis` with its curve scaled to pass through what was `measured`, distances by option.

    Between measured options the scale changes linearly; beyond them it stays. Never falling.
    """
    places = sorted(option for option in measured if axis.losses[option] > 0)
    if not places:
        return axis
    scales = [measured[option] / axis.losses[option] for option in places]
    curve = axis.losses * np.interp(np.arange(len(axis.losses)), places, scales)
    return replace(axis, losses=np.maximum.accumulate(curve))


def by_site(axes: Sequence[Axis]) -> dict[str, list[Axis]]:
    """The axes of each site that has any, by its name."""
    found: dict[str, list[Axis]] = {}
    for axis in axes:
        found.setdefault(axis.site, []).append(axis)
    return found


def spend(
    sites: Sequence[Site], config: PruneConfig, axes: Sequence[Axis], meter: costs.SiteCosts
) -> Chosen:
    """What to remove of each site so that the budget is met at the least summed loss.

    Raises `InputError` where the budget cannot be met.
    """
    unit, share = config.budget.only
    parts, full = by_site(axes), {site.name: size_of(site) for site in sites}
    fixed, choices, items = meter.fixed, [], []
    for name, size in full.items():
        if name not in parts:
            fixed += meter.site(name, size)
    for name, own in parts.items():
        choices.append(narrowing.choices(own))
        after = [narrowing.sizes_after(full[name], own, choice) for choice in choices[-1]]
        items.append(
            [
                Option(ceil(meter.site(name, size)), narrowing.loss(own, choice))
                for choice, size in zip(choices[-1], after, strict=True)
            ]
        )
    room = floor(share * meter.whole - fixed)
    whole = sum(options[0].weight for options in items)
    found = [0] * len(items) if whole <= room else solve_knapsack(items, room)
    if found is None:
        cheapest = sum(min(option.weight for option in options) for options in items)
        least = (fixed + cheapest) / meter.whole
        raise InputError(
            f"stages.{config.name}.budget.{unit}: {share:g} cannot be met; with these structures "
            f"and floor {np.ceil(1e4 * least) / 1e4:g} of the dense model is the least: ask for no "
            "less, lower floor, or name more structures"
        )
    return {
        name: options[chosen] for name, options, chosen in zip(parts, choices, found, strict=True)
    }


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
    return context.split(count)
