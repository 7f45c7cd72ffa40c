"""Figures of a model on a set of images, whatever runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch

from vitcompress import parallel
from vitcompress.console import track
from vitcompress.data.images import ImageSet, batches, dealt_batches
from vitcompress.data.preprocess import Preprocess
from vitcompress.data.sources import Label
from vitcompress.errors import RunError
from vitcompress.model.architecture import VitModel
from vitcompress.model.structure import placed
from vitcompress.report.model import Interval, Metrics
from vitcompress.tasks import Task

_BATCH = 16

Runner = Callable[[np.ndarray], np.ndarray]
"""Pixels float32 [n, C, H, W] → outputs [n, ...]."""


@dataclass(frozen=True)
class Judged:
    """The outputs [n, ...] of one model on some images, and the labels where there are any."""

    outputs: np.ndarray
    labels: tuple[Label, ...] | None

    def figures(self, task: Task, dense: "Judged | None") -> Metrics:
        """The figures of `task`, against the labels and against the outputs of the `dense` model.

        Raises `RunError` where one is NaN or infinite, as after outputs that are: such a figure
        would pass for a good one in a report.
        """
        outputs, found = torch.from_numpy(self.outputs), dict[str, float | None]()
        counted = dict[str, int]()
        if self.labels is not None:
            labels = torch.tensor(self.labels)
            found |= task.judged(outputs, labels)
            counted |= task.counted(task.against_labels, outputs, labels)
        if dense is not None:
            reference = torch.from_numpy(dense.outputs)
            found |= task.compared(outputs, reference)
            if dense is not self:  # that a model agrees with itself is no observation
                counted |= task.counted(task.against_dense, outputs, reference)
        for name, value in found.items():
            if value is not None and not isfinite(value):
                broken = int((~outputs.isfinite()).flatten(1).any(1).sum())
                why = f"the outputs of {broken} of {len(outputs)} images are NaN or infinite"
                none = "outputs are zero for some image, or those of the dense model do not vary"
                raise RunError(
                    f"{name} is {value}: {why if broken else none}; give an intact model, or "
                    "change the stage that breaks it"
                )
        intervals = {
            name: Interval.of(rate, counted[name])
            for name, rate in found.items()
            if name in counted and rate is not None
        }
        return Metrics.model_validate({"images": len(outputs), **found, "intervals": intervals})


def judge(
    run: Runner, images: ImageSet, preprocess: Preprocess, max_unreadable: float, description: str
) -> Judged:
    """Run all `images` through `run`, with progress.

    Raises `InputError` when too many images cannot be read.
    """
    outputs: list[np.ndarray] = []
    labels: list[Label] = []
    stream = batches(images, preprocess, _BATCH, max_unreadable=max_unreadable)
    for batch in track(stream, description, -(-len(images) // _BATCH)):
        outputs.append(run(batch.pixels.numpy()))
        if batch.labels is not None:
            labels.extend(batch.labels.tolist())
    return Judged(np.concatenate(outputs), tuple(labels) if images.labels is not None else None)


def judge_together(
    model: VitModel, images: ImageSet, device: torch.device, max_unreadable: float
) -> Judged:
    """The outputs of `model` for `images` as it takes them. Of several processes, which all have to
    call this when the first has judged these images before, each runs its own batches."""
    runner, spec = torch_runner(model, device), model.preprocess
    if parallel.alone():
        return judge(runner, images, spec, max_unreadable, "evaluating")
    images.skipped.update(parallel.from_first(lambda: dict(images.skipped)))
    stream = dealt_batches(images, spec, _BATCH, max_unreadable=max_unreadable)
    total = -(-len(images) // (_BATCH * parallel.world()))
    own = [runner(batch.pixels.numpy()) for batch in track(stream, "evaluating", total)]
    outputs = torch.cat(parallel.gathered(map(torch.from_numpy, own)))
    found = None if images.labels is None else [images.labels[i] for i in images.readable()]
    return Judged(outputs.numpy(), None if found is None else tuple(found))


def torch_runner(model: VitModel, device: torch.device) -> Runner:
    module = placed(model.module, device)

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs: np.ndarray = module(torch.from_numpy(pixels).to(device)).float().cpu().numpy()
        return outputs

    return run
