"""Which images a compressed model answers otherwise than the dense one, from what was judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
from numpy.typing import NDArray

from vitcompress.data.images import ImageSet
from vitcompress.data.labels import read_classes
from vitcompress.data.pictures import thumbnail
from vitcompress.data.preprocess import Preprocess, model_input
from vitcompress.evaluation import Judged
from vitcompress.report.model import ChangedAnswer, ChangedImage, Changes, ClassLoss
from vitcompress.tasks import Task

_SHOWN, _FARTHEST = 24, 12  # images at most: with changed answers, or with none to compare
_CLASSES = 10
_HEIGHT = 96  # pixels of a picture

Names = Callable[[int], str]
"""What a class is called, by its number."""


@dataclass(frozen=True)
class _Answers:
    """The classes that both models name, and those that the labels do, each [n]."""

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    labels: NDArray[np.int64] | None

    @property
    def changed(self) -> NDArray[np.int64]:
        """The places of the images with another answer."""
        return np.flatnonzero(self.before != self.after)

    @property
    def lost(self) -> NDArray[np.bool_]:
        """Whether an answer was right and is no more."""
        if self.labels is None:
            return np.zeros(len(self.before), bool)
        lost: NDArray[np.bool_] = (self.before == self.labels) & (self.after != self.labels)
        return lost

    @property
    def gained(self) -> NDArray[np.bool_]:
        """Whether an answer is right and was not before."""
        return _Answers(self.after, self.before, self.labels).lost


def changes(
    task: Task, dense: Judged, final: Judged, images: ImageSet, look: Preprocess, names: Names
) -> Changes:
    """How the `final` outputs for `images` differ from the `dense` ones: the images whose answer is
    another, those that were right first; of a task without answers, those whose outputs have moved
    most. Only these are read again, for their pictures.
    """
    before, after = (torch.from_numpy(each.outputs).double() for each in (dense, final))
    distance = task.distance(after, before).numpy()
    is_cosine = "cosine" in task.against_dense
    answers = None
    if task.answers is None:
        order = np.argsort(-distance, kind="stable")[:_FARTHEST]
    else:
        labels = None if dense.labels is None else np.array(dense.labels)
        answers = _Answers(task.answers(before).numpy(), task.answers(after).numpy(), labels)
        changed = answers.changed
        order = changed[np.lexsort((-distance[changed], ~answers.lost[changed]))][:_SHOWN]
    places = images.readable()
    shown = tuple(
        ChangedImage(
            image=images.names[places[row]],
            picture=_picture(images, places[row], look),
            value=float(1 - distance[row] if is_cosine else distance[row]),
            answer=None if answers is None else _told(answers, row, names),
        )
        for row in order.tolist()
    )
    return Changes(
        images=len(distance),
        changed=None if answers is None else len(answers.changed),
        lost=None if answers is None or answers.labels is None else int(answers.lost.sum()),
        gained=None if answers is None or answers.labels is None else int(answers.gained.sum()),
        measure="cosine" if is_cosine else task.word,
        shown=shown,
        classes=() if answers is None else tuple(_losses(answers, names)),
    )


def class_names(images: ImageSet, known: Sequence[str] | None, listed: Path | None) -> Names:
    """What classes are called: as the model has it, as the file `listed` does, or as the folders of
    the labelled `images`; else by their numbers."""
    folders = {
        label: PurePath(name).parent.name
        for name, label in zip(images.names, images.labels or (), strict=False)
        if isinstance(label, int) and PurePath(name).parent.name
    }
    names = dict(folders)
    if listed is not None:
        names |= dict(enumerate(read_classes(listed, set(folders.values()))))
    names |= dict(enumerate(known or ()))
    return lambda number: names.get(number, f"class {number}")


def _told(answers: _Answers, row: int, names: Names) -> ChangedAnswer:
    label = None if answers.labels is None else names(int(answers.labels[row]))
    before, after = names(int(answers.before[row])), names(int(answers.after[row]))
    return ChangedAnswer(before=before, after=after, label=label)


def _losses(answers: _Answers, names: Names) -> list[ClassLoss]:
    """The classes of which fewer images are right than before, those that lost most first."""
    if answers.labels is None:
        return []
    found = []
    for label in np.unique(answers.labels).tolist():
        own = answers.labels == label
        right = (int((each[own] == label).sum()) for each in (answers.before, answers.after))
        before, after = right
        if after < before:
            found.append(
                ClassLoss(name=names(label), images=int(own.sum()), before=before, after=after)
            )
    return sorted(found, key=lambda each: each.after - each.before)[:_CLASSES]


def _picture(images: ImageSet, place: int, look: Preprocess) -> str:
    return thumbnail(model_input(images.read(place), look), look.mean, look.std, _HEIGHT)
