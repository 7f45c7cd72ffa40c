"""What each layer counts for the output of a model: relevance, Fisher information, or neither."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.data.pictures import heat_map, photograph
from vitcompress.details import Gallery, Pictures
from vitcompress.methods import relevance
from vitcompress.methods.saliency import fisher_readout
from vitcompress.model.architecture import VitModel
from vitcompress.model.structure import float_twin, placed
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.config import Score

_SCORED = 64  # images
_SHOWN, _CELLS = 4, 14  # images with pictures of their relevance, and its fields a side


def importance(
    module: nn.Module, names: Sequence[str], score: Score, context: Context
) -> dict[str, float]:
    """What the layers `names` count under `score` (`lrp`, `fisher`, `uniform` or `random`).

    Times the mean squared error of a layer's output as a share of its variance, this is in
    proportion to the expected change of the model's output; only ratios mean something.

    - `lrp`: the relevance of the output at the layer for the model's own top class, summed over
      outputs and tokens without its sign, as a share of the class's logit (the layer contribution
      score of LRP-QViT, 2401.11243).
    - `fisher`: the Fisher information of the model's own softmax (squared gradients) times the
      variance of the output, summed over outputs and tokens: twice the KL of an error.
    """
    if score == "uniform":
        return dict.fromkeys(names, 1.0)
    if score == "random":
        drawn = torch.rand(len(names), generator=torch.Generator().manual_seed(context.seed))
        return dict(zip(names, drawn.tolist(), strict=True))
    module, totals = placed(module, context.device), dict.fromkeys(names, 0.0)
    generator = torch.Generator().manual_seed(context.seed)
    seen = 0
    with torch.enable_grad():
        for pixels in context.calibration_batches("scoring layers", _SCORED):
            seen += len(pixels)
            logits, outputs = traced(module, names, pixels.to(context.device), score == "lrp")
            if score == "lrp":
                found = _contributions(logits, outputs)
            else:
                found = _information(logits, outputs, generator)
            for name, value in found.items():
                totals[name] += value
    return {name: total / seen for name, total in totals.items()}


def _contributions(logits: Tensor, outputs: dict[str, Tensor]) -> dict[str, float]:
    """The unsigned relevance of each output for the top logit, as shares of it, over all images."""
    top = logits.amax(-1)
    top.sum().backward()
    return {
        name: float((relevance.of(y).abs().flatten(1).sum(1) / top.detach().abs()).sum())
        for name, y in outputs.items()
    }


def _information(
    logits: Tensor, outputs: dict[str, Tensor], generator: torch.Generator
) -> dict[str, float]:
    """The squared gradient times the variance of each feature, over all tokens and images."""
    (logits * fisher_readout(logits, generator)).sum().backward()
    found = {}
    for name, y in outputs.items():
        gradient = torch.zeros_like(y) if y.grad is None else y.grad
        variance = y.detach().flatten(0, -2).var(0, correction=0)
        found[name] = float(gradient.flatten(0, -2).square().sum(0) @ variance)
    return found


def relevance_maps(before: VitModel, after: VitModel, context: Context) -> Gallery:
    """Pictures of where two models find what speaks for the class that the first one names.

    Of a few images: the image, and the relevance of its parts for either model.
    """
    batch = context.shown(_SHOWN)
    shown = batch.pixels.to(context.device)
    twins = [float_twin(model.module).to(context.device) for model in (before, after)]
    classes = twins[0](shown).argmax(-1)
    maps = [heat(twin, shown, classes, _CELLS) for twin in twins]
    look = context.preprocess
    rows = []
    for place, pixels in enumerate(shown):
        photo = photograph(pixels, look.mean, look.std, 112)
        sources = (photo, *(heat_map(found[place]) for found in maps))
        rows.append(Pictures(batch.names[place], sources))
    return Gallery("relevance", ("input", "before", "after"), tuple(rows))


def heat(module: nn.Module, pixels: Tensor, classes: Tensor, cells: int) -> Tensor:
    """The relevance of the pixels for `classes` [n], in fields: [n, cells, cells].

    `module` must give gradients: see `float_twin`.
    """
    given = pixels.detach().clone().requires_grad_()
    with torch.enable_grad(), relevance.Propagation():
        explained = module(given).gather(1, classes[:, None])
        explained.sum().backward()
    return F.adaptive_avg_pool2d(relevance.of(given).sum(1), cells)


def traced(
    module: nn.Module, names: Sequence[str], pixels: Tensor, rules: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the outputs of the layers `names`, which keep their gradients.

    With `rules`, gradients are those of relevance propagation.
    """
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            if output.requires_grad:  # not what no image reaches
                output.retain_grad()
            outputs[name] = output

        return module.get_submodule(name).register_forward_hook(keep)

    handles = [hook(name) for name in names]
    try:
        with torch.enable_grad(), relevance.Propagation() if rules else nullcontext():
            logits = module(pixels.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return logits, outputs
