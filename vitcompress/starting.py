"""A first recipe for a checkpoint: what it is, which stages apply to it, and gates that suit it."""

import math
from collections.abc import Iterator
from textwrap import indent
from typing import NamedTuple

import torch

from vitcompress import targets
from vitcompress.chain import planned
from vitcompress.dense import load_dense
from vitcompress.errors import InputError
from vitcompress.export import folder
from vitcompress.measure import cost
from vitcompress.model.architecture import VitModel
from vitcompress.recipe import Recipe
from vitcompress.report import format as fmt
from vitcompress.run_images import judging
from vitcompress.stages.registry import StageConfig, stage_of
from vitcompress.terms import AGAINST
from vitcompress.yamltext import dump, parse_yaml


class _Offer(NamedTuple):
    """A stage as a recipe writes it; `on`: whether a first recipe has it."""

    line: str
    what: str
    on: bool = False

    @property
    def config(self) -> StageConfig:
        return Recipe.model_validate({"stages": [parse_yaml(self.line, str).data]}).stages[0]


_OFFERS = (
    _Offer(
        "{name: tail, type: tail}",
        "After the last attention only what the head reads is computed. This is exact.",
        on=True,
    ),
    _Offer(
        "{name: prune, type: prune, budget: {macs: 0.8}}",
        "Narrower blocks, of the widths that matter; best with 512 images or more.",
    ),
    _Offer(
        "{name: merge, type: merge, method: fisher, budget: {macs: 0.65}}",
        "Fewer tokens from block to block.",
    ),
    _Offer(
        '{name: sparse, type: sparsify, pattern: "2:4"}',
        "Zeros in the MLPs that files do not store; no faster in onnxruntime.",
    ),
    _Offer(
        "{name: recover, type: recover}",
        "Training, without labels, that wins back what the stages before lost; takes longest.",
    ),
    _Offer(
        "{name: quant, type: quantize, layers: [stem, blocks, head], rest: float16}",
        "Linear layers in 8-bit integers, the only ones that are fast on CPUs.",
        on=True,
    ),
)
_NEAR = {
    "agreement": ("min", 97, "percent of images with the same answer as the model has now"),
    "cosine": ("min", 0.99, "of embeddings to those that the model gives now, on average"),
    "relative_error": ("max", 0.03, "of the variance of the outputs that the model gives now"),
}
_RIGHT = ("top1", "map", "knn")
_ROOM = 0.05  # of the bytes, for what a file holds beside tensors


@torch.no_grad()
def starting_recipe(recipe: Recipe) -> str:
    """A commented recipe, as YAML, for the model that `recipe` names; what it sets is kept.

    Raises `InputError` where there is no such model.
    """
    dense = load_dense(recipe)
    stages, applying = list[str](), list[StageConfig]()
    for offer in _OFFERS:
        told, applies = _offered(offer, dense)
        stages.append(told)
        if applies and offer.on:
            applying.append(offer.config)
    chain = recipe.model_copy(update={"stages": tuple(applying)})
    runtime = targets.load_target(recipe.export.target)
    models = [dense, *(result.model for _, result in planned(chain, dense, runtime))]
    share = folder.stored_bytes(models[-1]) / folder.stored_bytes(dense)
    parts = [
        *_told_of(dense, recipe),
        "version: 1\n",
        *_given(recipe, dense),
        *_data(recipe),
        "stages:" + ("" if applying else " []") + "\n" + indent("\n".join(stages), "  "),
        _gates(recipe, dense, math.ceil(20 * (share + _ROOM)) / 20),
    ]
    return "\n".join(parts)


def _offered(offer: _Offer, dense: VitModel) -> tuple[str, bool]:
    """The lines of a stage, and whether it applies."""
    config = offer.config
    try:
        result = stage_of(config).plan(dense, config)
    except InputError as error:
        return f"# {config.type} does not apply: {str(error).partition(': ')[2]}\n", False
    if (why := result.facts.get("skipped")) is not None:
        return f"# {config.type} does not apply: {why}\n", False
    shares = {
        "MACs": cost.macs(result.model) / cost.macs(dense),
        "bytes": folder.stored_bytes(result.model) / folder.stored_bytes(dense),
    }
    less = [f"{100 * share:.0f} % of the {of}" for of, share in shares.items() if share < 0.995]
    left = f" Leaves {' and '.join(less)}." if less else ""
    switch = "" if offer.on else "# "
    return f"# {offer.what}{left}\n{switch}- {offer.line}\n", True


def _told_of(dense: VitModel, recipe: Recipe) -> Iterator[str]:
    """The head of the file: how to run it, and what the checkpoint is."""
    anatomy, size = dense.anatomy, dense.preprocess.input_size
    outputs = f"{dense.num_classes} output(s)" if dense.num_classes else "no head"
    tokens = next((at.first for s in anatomy.sites[1:] if (at := anatomy.tokens_at(s))), None)
    seen = "" if tokens is None else f", {tokens} tokens in the first block"
    weight = f"{fmt.count(cost.parameters(dense.module))} parameters"
    yield f"# A first chain of stages for {dense.architecture.timm}, to be run with its images:"
    yield "#   vitcompress run RECIPE --calibration DIR --evaluation DIR"
    yield "#"
    yield f"# The model: family {anatomy.family}, {dense.task.name}, {outputs};"
    yield f"# {weight}, {fmt.macs(cost.macs(dense))} an image, {len(anatomy.blocks)} blocks;"
    yield f"# images of {size[0]}×{size[1]} pixels{seen}."


def _given(recipe: Recipe, dense: VitModel) -> Iterator[str]:
    """Where the model comes from, and what its output means."""
    yield dump({"model": recipe.model.model_dump(mode="json", exclude_defaults=True)})
    if recipe.task is None:
        yield f"# task: {dense.task.name} # as its outputs suggest\n"
    kept = recipe.model_dump(mode="json", include={"task", "classes"}, exclude_none=True)
    if kept:
        yield dump(kept)


def _data(recipe: Recipe) -> Iterator[str]:
    """The images, those that are to be given as comments."""
    given = recipe.data.model_dump(mode="json", exclude_defaults=True)
    yield "data:"
    if "calibration" not in given:
        yield "  # calibration: DIR # images without labels: a folder, a .tar or a .npz"
    if "evaluation" not in given:
        yield "  # evaluation: DIR # images to judge on, in folders by class where labels are known"
    shown = {"images": recipe.data.images, **given}
    yield indent(dump(shown), "  ")


def _gates(recipe: Recipe, dense: VitModel, share: float) -> str:
    """What must hold in the end, by the figures of the task."""
    task = judging(recipe, dense).task
    lines = ["# What must hold in the end; otherwise the exit code is 1.", "gates:"]
    for figure in task.against_labels:
        if figure in _RIGHT:
            lines.append(f"  # max_drop: {{{figure}: 1.0}} # points; for images with labels")
            break
    for figure in task.against_dense:
        if figure in _NEAR:
            kind, limit, why = _NEAR[figure]
            lines.append(f"  {kind}: {{{figure}: {limit}}} # {why}")
            break
    lines.append(f"  max_ratio: {{bytes: {share:g}}} # the ONNX file against that of the model now")
    worse = {f: limit for f, limit in AGAINST.items() if f in {*task.figures, "bytes", "latency"}}
    told = ", ".join(f"{figure}: {limit:g}" for figure, limit in worse.items())
    lines.append(f"  # against: {{{told}}} # worse than the run given as --against")
    return "\n".join(lines) + "\n"
