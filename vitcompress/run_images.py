"""The images of a run: which to calibrate on and which to judge on, with the labels of its task."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from vitcompress.data.classifier import read_classifier
from vitcompress.data.images import ImageSet, check_channels, open_images
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel, output_shape
from vitcompress.model.subset import Subset
from vitcompress.recipe import Recipe
from vitcompress.specialising import images_of
from vitcompress.stages.prune.config import PruneConfig
from vitcompress.stages.recover.config import RecoverConfig
from vitcompress.tasks import Task
from vitcompress.tasks.embedding import zero_shot


@dataclass(frozen=True)
class RunImages:
    """The images of a run: to calibrate on, to judge on (labelled or not), and more to train on."""

    calibration: ImageSet | None
    evaluation: ImageSet
    recovery: ImageSet | None = None

    @property
    def sets(self) -> dict[str, ImageSet]:
        """Those that there are, by name."""
        sets = {
            "calibration": self.calibration,
            "evaluation": self.evaluation,
            "recovery": self.recovery,
        }
        return {name: images for name, images in sets.items() if images is not None}

    def fingerprints(self) -> dict[str, str]:
        return {name: images.fingerprint() for name, images in self.sets.items()}

    def warnings(self) -> list[str]:
        found = (
            f"{i.source}: {name} skipped: {why}"
            for i in self.sets.values()
            for name, why in i.skipped.items()
        )
        return list(dict.fromkeys(found))  # both may be parts of one set


class Judging(NamedTuple):
    """By what a run judges: a task with its figures, how many classes or outputs it tells, what
    they are called, and which they are of those that the labels name (None: all)."""

    task: Task
    outputs: int
    class_names: tuple[str, ...] | None = None
    subset: Subset | None = None


def judging(recipe: Recipe, model: VitModel) -> Judging:
    """By what `recipe` judges: the task of `model`, and where there is a classifier of embeddings,
    the figures of a classification besides.

    Raises `InputError` for a classifier that does not fit.
    """
    if recipe.data.classifier is None:
        return Judging(model.task, model.num_classes, model.class_names, model.subset)
    if model.task.name != "embedding":
        raise InputError(
            f"data.classifier: is for embeddings, and the task is {model.task.name}; "
            "set task: embedding, or leave it out"
        )
    shape = output_shape(model)
    if len(shape) != 1:
        raise InputError(
            f"data.classifier: the output is {list(shape)} an image, and it needs one embedding; "
            "set model.output to pooled or average"
        )
    classes = read_classifier(Path(recipe.data.classifier), shape[0])
    return Judging(zero_shot(classes), len(classes), model.class_names)


def open_run_images(recipe: Recipe, model: VitModel, limit: int | None, seed: int) -> RunImages:
    """The images that `recipe` names, as `model` can use them, at most `limit` of each set.

    Raises `InputError` where there are none to calibrate or to judge on, for labels that the task
    cannot use, and for images without the channels of the model.
    """
    data = recipe.data
    calibration = evaluation = None
    classes = Path(data.classes) if data.classes else None
    if data.evaluation is not None:
        evaluation = evaluation_images(data.evaluation, classes, judging(recipe, model), limit)
    if data.calibration is not None:
        wanted = min(data.images, limit or data.images)
        further = wanted if evaluation is None else 0
        everything, calibration = _calibration_images(recipe, model, wanted, further, seed)
        check_labels(calibration, model.task, model.num_classes)
        if evaluation is None:
            calibration, evaluation = held_back(everything, wanted, calibration)
    if calibration is not None:  # whole batches of one class would mislead the stages
        order = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(seed))
        calibration = calibration.subset(order.tolist())
    if calibration is None and recipe.stages:
        raise InputError("no calibration images: give --calibration DIR, or data.calibration")
    if evaluation is None:
        raise InputError("no images: give --evaluation DIR or --calibration DIR")
    found = RunImages(calibration, evaluation, _recovery_images(recipe, model, limit, seed))
    for images in found.sets.values():
        check_channels(images, model.preprocess)
    return found


def _calibration_images(
    recipe: Recipe, model: VitModel, wanted: int, further: int, seed: int
) -> tuple[ImageSet, ImageSet]:
    """All calibration images that there are, or those `wanted` and so many `further` ones at least,
    and the `wanted` ones among them."""
    data, source = recipe.data, str(recipe.data.calibration)
    labelled = any(isinstance(s, PruneConfig) and s.targets == "labels" for s in recipe.stages)
    if model.subset is not None:
        found = images_of(recipe, source, model.subset, labelled, wanted + further, seed)
        return found, found.sample(wanted, seed)
    classes = Path(data.classes) if data.classes else None
    look = partial(
        open_images, source, classes=classes, labelled=labelled, class_names=model.class_names
    )
    chosen = look(limit=wanted, seed=seed)
    return (look() if further else chosen), chosen


def _recovery_images(
    recipe: Recipe, model: VitModel, limit: int | None, seed: int
) -> ImageSet | None:
    """Images to train on besides. Raises `InputError` where no stage would."""
    if (source := recipe.data.recovery) is None:
        return None
    if not any(isinstance(s, RecoverConfig) and s.method == "distill" for s in recipe.stages):
        raise InputError(
            "data.recovery: only a stage recover with method: distill trains on images; add one, "
            "or leave it out"
        )
    if model.subset is not None:
        return images_of(recipe, source, model.subset, False, limit, seed).sample(limit, seed)
    return open_images(source, labelled=False, limit=limit, seed=seed)


def evaluation_images(
    source: str, classes: Path | None, judging: Judging, limit: int | None
) -> ImageSet:
    """The images of `source` with the labels that the task can use, of the classes that are told.

    Raises `InputError` as `open_images` and `check_labels`, and where none are of these classes.
    Only a classification has to have labels; other tasks have them where all images have one.
    """
    task, outputs, names, subset = judging
    labelled = {"classes": True, "none": False}.get(task.labels)
    if subset is None:
        images = open_images(
            source, classes=classes, labelled=labelled, limit=limit, class_names=names
        )
        check_labels(images, task, outputs)
        return images
    whole = Judging(task, subset.whole.num_classes, subset.whole.class_names)
    images = evaluation_images(source, classes, whole, None).restricted(subset.kept)
    if not len(images):
        raise InputError(f"{source}: no image is of the classes to be kept; give images of them")
    return images.sample(limit)


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
