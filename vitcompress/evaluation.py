"""Figures of a model on a set of images, whatever runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import torch

from vitcompress.console import track
from vitcompress.data.images import ImageSet, batches, open_images
from vitcompress.data.preprocess import Preprocess
from vitcompress.data.sources import Label
from vitcompress.errors import InputError, RunError
from vitcompress.model.architecture import VitModel
from vitcompress.model.structure import placed
from vitcompress.report.model import Metrics
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
        if self.labels is not None:
            found |= task.judged(outputs, torch.tensor(self.labels))
        if dense is not None:
            found |= task.compared(outputs, torch.from_numpy(dense.outputs))
        for name, value in found.items():
            if value is not None and not isfinite(value):
                broken = int((~outputs.isfinite()).flatten(1).any(1).sum())
                why = f"the outputs of {broken} of {len(outputs)} images are NaN or infinite"
                none = "outputs are zero for some image, or those of the dense model do not vary"
                raise RunError(
                    f"{name} is {value}: {why if broken else none}; give an intact model, or "
                    "change the stage that breaks it"
                )
        return Metrics.model_validate({"images": len(outputs), **found})


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


def torch_runner(model: VitModel, device: torch.device) -> Runner:
    module = placed(model.module, device)

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs: np.ndarray = module(torch.from_numpy(pixels).to(device)).float().cpu().numpy()
        return outputs

    return run


def evaluation_images(
    source: str, classes: Path | None, task: Task, outputs: int, limit: int | None
) -> ImageSet:
    """The images of `source` with the labels that `task` can use, of a model with `outputs`.

    Raises `InputError` as `open_images` and `check_labels`. Only a classification has to have
    labels; other tasks have them where all images have one.
    """
    labelled = {"classes": True, "none": False}.get(task.labels)
    images = open_images(source, classes=classes, labelled=labelled, limit=limit)
    check_labels(images, task, outputs)
    return images


def check_labels(images: ImageSet, task: Task, outputs: int) -> None:
    """Raise `InputError` where the labels of `images` are none that `task` can use."""
    if images.labels is None:
        return
    width = len(images.labels[0]) if isinstance(images.labels[0], tuple) else None
    if task.labels == "matrix":
        if width != outputs:
            has = "one class an image" if width is None else f"labels for {width} outputs"
            raise InputError(
                f"{images.source}: has {has}, and {task.name} takes a .npz with labels 0 or 1, "
                f"[n, {outputs}], or images without labels or class folders"
            )
        return
    if width is not None:
        raise InputError(
            f"{images.source}: has a label for each of {width} outputs, and {task.name} takes one "
            "class an image; set task: multi_label, or give labels [n]"
        )
    classes = {"classes": outputs, "two classes": 2}.get(task.labels)
    if classes is None:
        return
    if images.num_classes is not None and images.num_classes != classes:
        raise InputError(
            f"{images.source}: its labels name {images.num_classes} classes and the model has "
            f"{classes}; give --classes FILE, one folder name a line in the order of the model"
        )
    largest = max(label for label in images.labels if isinstance(label, int))
    if largest >= classes:
        raise InputError(
            f"{images.source}: has the label {largest} and the model {classes} classes; "
            "give the images the model was trained for"
        )


def held_back(full: ImageSet, wanted: int, chosen: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Split `full` into images to calibrate on and images to judge agreement on, never the same.

    `chosen`: the sample of `wanted` images to calibrate on. Where it leaves fewer than 32 others,
    every fifth of the chosen is held back instead.
    """
    names = set(chosen.names)
    others = [i for i, name in enumerate(full.names) if name not in names]
    if len(others) >= 32:
        step = max(1, len(others) // wanted)
        return chosen, full.subset(others[::step][:wanted])
    back = list(range(4, len(chosen), 5))
    kept = [i for i in range(len(chosen)) if i % 5 != 4]
    if not back:
        raise InputError(
            f"{full.source}: {len(full)} images are too few to calibrate on and to hold some back; "
            "give more, or give evaluation images"
        )
    return chosen.subset(kept), chosen.subset(back)
