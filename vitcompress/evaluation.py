"""Figures of a model on a set of images, whatever runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vitcompress.console import track
from vitcompress.data.images import ImageSet, batches
from vitcompress.data.preprocess import Preprocess
from vitcompress.errors import InputError
from vitcompress.measure.accuracy import agreement, mean_kl, top_k
from vitcompress.model.architecture import VitModel
from vitcompress.model.structure import placed

_BATCH = 16

Runner = Callable[[np.ndarray], np.ndarray]
"""Pixels float32 [n, C, H, W] → logits [n, classes]."""


@dataclass(frozen=True)
class Judged:
    """The logits [n, classes] of one model on some images, and the labels where there are any."""

    logits: np.ndarray
    labels: tuple[int, ...] | None

    def figures(self, dense: "Judged | None") -> dict[str, Any]:
        """The accuracy part of METRICS, against the logits of the `dense` model."""
        labels = self.labels
        return {
            "images": len(self.logits),
            "top1": None if labels is None else top_k(self.logits, labels, 1),
            "top5": None if labels is None else top_k(self.logits, labels, 5),
            "agreement": None if dense is None else agreement(self.logits, dense.logits),
            "kl": None if dense is None else mean_kl(self.logits, dense.logits),
        }


def judge(
    run: Runner, images: ImageSet, preprocess: Preprocess, max_unreadable: float, description: str
) -> Judged:
    """Run all `images` through `run`, with progress.

    Raises `InputError` when too many images cannot be read.
    """
    logits: list[np.ndarray] = []
    labels: list[int] = []
    stream = batches(images, preprocess, _BATCH, max_unreadable=max_unreadable)
    for batch in track(stream, description, -(-len(images) // _BATCH)):
        logits.append(run(batch.pixels.numpy()))
        if batch.labels is not None:
            labels.extend(batch.labels.tolist())
    return Judged(np.concatenate(logits), tuple(labels) if images.labels is not None else None)


def torch_runner(model: VitModel, device: torch.device) -> Runner:
    module = placed(model.module, device)

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = module(torch.from_numpy(pixels).to(device)).float().cpu().numpy()
        return logits

    return run


def check_labels(images: ImageSet, classes: int) -> None:
    """Raise `InputError` where the labels of `images` cannot be those of a model of `classes`."""
    if images.labels is None:
        return
    if images.num_classes is not None and images.num_classes != classes:
        raise InputError(
            f"{images.source}: its labels name {images.num_classes} classes and the model has "
            f"{classes}; give --classes FILE, one folder name a line in the order of the model"
        )
    if max(images.labels) >= classes:
        raise InputError(
            f"{images.source}: has the label {max(images.labels)} and the model {classes} classes; "
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
