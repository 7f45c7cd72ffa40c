"""Relevance at a layer's output (the layer contribution score of LRP-QViT, 2401.11243)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress.data.pictures import heat_map, thumbnail
from vitcompress.details import Gallery, Pictures
from vitcompress.methods import relevance
from vitcompress.model.architecture import VitModel
from vitcompress.model.structure import float_twin, placed
from vitcompress.stages.captions import captions
from vitcompress.stages.context import Context
from vitcompress.stages.quantize.scores import ESTIMATED, Score, Scored
from vitcompress.tasks import Task

_SHOWN, _CELLS = 4, 14  # images with pictures of their relevance, and its fields a side
_SIZE = 168  # height of a picture, in pixels
_KEY = "Red parts speak for what the model before this stage answers, blue ones against it."


def contributions(scored: Scored) -> list[float]:
    """The relevance of what the task explains (for classes, the largest logit), summed over
    features and tokens without its sign, as a share of what is explained."""
    whole = torch.empty(0)

    def loss(output: Tensor, _: Tensor | None) -> Tensor:
        nonlocal whole
        explained = scored.task.explained(output)
        whole = explained.detach().abs().clamp_min(torch.finfo(explained.dtype).tiny)
        return explained.sum()

    def of(_: str, y: Tensor, gradient: Tensor) -> float:
        return float(((y * gradient).abs().reshape(len(whole), -1).sum(1) / whole).sum())

    with relevance.Propagation():
        return scored.gradients(of, loss)


def relevance_maps(before: VitModel, after: VitModel, context: Context) -> Gallery:
    """Pictures of where two models find what speaks for what the first one says.

    Of a few images: the image, the relevance of its parts for either model, drawn over it, and what
    both answer.
    """
    batch = context.shown(_SHOWN)
    shown = batch.pixels.to(context.device)
    twins = [float_twin(model.module).to(context.device) for model in (before, after)]
    dense, answer = twins[0](shown), placed(after.module, context.device)(shown)
    readout = _direction(before.task, dense)
    maps = [heat(twin, shown, readout, _CELLS) for twin in twins]
    told = captions(batch, before.task, dense, answer, context.names)
    look = context.preprocess
    rows = []
    for place, pixels in enumerate(shown):
        photo = thumbnail(pixels, look.mean, look.std, _SIZE)
        heats = (heat_map(pixels, each[place], look.mean, look.std, _SIZE) for each in maps)
        rows.append(Pictures(told[place], (photo, *heats)))
    return Gallery("relevance", ("input", "before", "after"), tuple(rows), _KEY)


def _direction(task: Task, output: Tensor) -> Tensor:
    """The weights on outputs whose sum is, near `output`, what the task explains."""
    held = output.detach().requires_grad_()
    with torch.enable_grad():
        (weights,) = torch.autograd.grad(task.explained(held).sum(), held)
    return weights


def heat(module: nn.Module, pixels: Tensor, readout: Tensor, cells: int) -> Tensor:
    """The relevance of the pixels for Σ `readout` × output, in fields: [n, cells, cells].

    `module` must give gradients: see `float_twin`.
    """
    given = pixels.detach().clone().requires_grad_()
    with torch.enable_grad(), relevance.Propagation():
        (module(given) * readout).sum().backward()
    return F.adaptive_avg_pool2d(relevance.of(given).sum(1), cells)


SCORE = Score(
    contributions, gradients=True, power=ESTIMATED, column="relevance", pictures=relevance_maps
)
