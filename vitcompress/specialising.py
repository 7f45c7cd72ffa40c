"""A run for some of the classes of a classifier: which they are, and which images are of them."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vitcompress import paths
from vitcompress.console import note, track
from vitcompress.data.images import ImageSet, batches, open_images
from vitcompress.data.labels import in_order, normal, read_classes, tells_classes
from vitcompress.data.sources import list_source
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel
from vitcompress.model.subset import Subset, restricted
from vitcompress.recipe import Recipe

_LEAST = 8  # images of a set, if so many are wanted
_BATCH = 16


def specialised(recipe: Recipe, model: VitModel) -> VitModel:
    """`model` with the classes alone that `recipe` names; the same where it names none, or all.

    Raises `InputError` for a class that the model does not have, and for a model that is no
    classifier.
    """
    if recipe.classes is None:
        return model
    if model.task.name != "classification":
        raise InputError(
            f"classes: the task is {model.task.name}, and only a classification has classes; leave "
            "classes out"
        )
    wanted = recipe.classes
    if isinstance(wanted, str):
        wanted = tuple(read_classes(Path(wanted), set()))
    named = list(_names(recipe, model, {each for each in wanted if isinstance(each, str)}))
    kept = sorted({_place(each, named, model.num_classes) for each in wanted})
    if len(kept) < 2:
        raise InputError("classes: name two classes or more; one alone needs no classifier")
    if len(kept) == model.num_classes:
        return model
    names = named[0] if named else [str(place) for place in range(model.num_classes)]
    return restricted(model, kept, [names[place] for place in kept])


def _names(recipe: Recipe, model: VitModel, wanted: set[str]) -> Iterator[Sequence[str]]:
    """What the classes of `model` are called: by itself, by `data.classes`, and by folders where
    there is one for each."""
    if model.class_names is not None:
        yield model.class_names
    if recipe.data.classes is not None:
        names = read_classes(Path(recipe.data.classes), wanted)
        if len(names) == model.num_classes:
            yield names
        return
    for source in filter(None, (recipe.data.evaluation, recipe.data.calibration)):
        if source.startswith(paths.BUILT_IN) or paths.exists(source):
            found = list_source(source).class_names
            if len(found) == model.num_classes:
                yield in_order(found, source)
                return


def _place(wanted: str | int, named: Sequence[Sequence[str]], classes: int) -> int:
    """The number of a class, by one of the rows of names, or by itself."""
    for names in named:
        found = [place for place, name in enumerate(names) if normal(name) == normal(str(wanted))]
        if isinstance(wanted, str) and len(found) == 1:
            return found[0]
        if isinstance(wanted, str) and found:
            numbers = " and ".join(map(str, found))
            raise InputError(f"classes: {wanted}: classes {numbers} are called so; give the number")
    if isinstance(wanted, int) or wanted.isdecimal():
        if int(wanted) < classes:
            return int(wanted)
        raise InputError(f"classes: {wanted}: the model has {classes} classes, 0 to {classes - 1}")
    known = [name for names in named for name in names]
    near = difflib.get_close_matches(wanted, known, 3, cutoff=0.5)
    remedy = f"did you mean {' or '.join(near)}?" if near else f"give numbers, 0 to {classes - 1}"
    if not known:
        remedy += ", or name all classes in data.classes"
    raise InputError(f"classes: {wanted}: the model has no class of this name; {remedy}")


def images_of(
    recipe: Recipe, source: str, subset: Subset, labelled: bool, wanted: int | None, seed: int
) -> ImageSet:
    """The images of `source` that are of the classes of `subset`: by their labels, where they tell,
    else by the answers of the whole model, of which `wanted` are looked for (None: all).

    `labelled`: whether labels are asked for. Raises `InputError` for too few images.
    """
    model, data = subset.whole, recipe.data
    classes = Path(data.classes) if data.classes else None
    told = (classes, model.class_names, model.num_classes)
    labelled = labelled or tells_classes(list_source(source), *told)
    images = open_images(source, classes=classes, labelled=labelled, class_names=model.class_names)
    if labelled:
        found, looked_at, by = images.restricted(subset.kept), len(images), "their labels"
    else:
        found, looked_at = _answered(images, subset, wanted, seed, data.max_unreadable)
        by = "the answers of the dense model"
    line = f"{source}: {len(found)} of {looked_at} images are of the classes to be kept, by {by}"
    if len(found) < min(_LEAST, wanted or _LEAST):
        raise InputError(f"{line}: too few; give more images of them, or keep more classes")
    note(line)
    return found


@torch.no_grad()
def _answered(
    images: ImageSet, subset: Subset, wanted: int | None, seed: int, max_unreadable: float
) -> tuple[ImageSet, int]:
    """Those of `images`, in random order, whose largest logit is of a class that is kept; how many
    were looked at until there were as many as are `wanted`."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    shuffled, found, looked_at = images.subset(order.tolist()), list[int](), 0
    places = {name: place for place, name in enumerate(shuffled.names)}
    spec, kept = subset.whole.preprocess, set(subset.kept)
    stream = batches(shuffled, spec, _BATCH, max_unreadable=max_unreadable)
    for batch in track(stream, "looking for classes", -(-len(images) // _BATCH)):
        answers = subset.whole.module(batch.pixels).argmax(-1).tolist()
        pairs = zip(batch.names, answers, strict=True)
        found += [places[name] for name, answer in pairs if answer in kept]
        looked_at += len(batch.names)
        if wanted is not None and len(found) >= wanted:
            break
    return shuffled.subset(found[:wanted]), looked_at
