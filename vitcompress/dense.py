"""The dense model that a recipe names."""

from dataclasses import replace
from pathlib import Path

from vitcompress import gates
from vitcompress.console import note
from vitcompress.data.labels import read_classes
from vitcompress.errors import InputError
from vitcompress.model.architecture import VitModel, from_source
from vitcompress.model.head import Choice
from vitcompress.recipe import Recipe
from vitcompress.run_images import judging
from vitcompress.specialising import specialised


def load_dense(recipe: Recipe) -> VitModel:
    """The dense model a recipe names, with its task and the classes that are to be kept.

    Raises `InputError` where it cannot be had, where it cannot have the task or the classes that
    the recipe names, and where a gate asks for what that task does not give.
    """
    source = recipe.model.checkpoint
    if source is None:
        raise InputError("no model: give a checkpoint after the recipe, or model.checkpoint in it")
    model = from_source(
        source,
        recipe.model.name,
        dict(recipe.model.options),
        recipe.model.num_classes,
        recipe.data.preprocess_overrides(),
        recipe.model.key,
        Choice(recipe.model.output, recipe.model.normalise, recipe.model.head.activation),
    )
    model = model.with_task(recipe.task or model.task_name)
    if recipe.model.normalise and model.task.name != "embedding":
        raise InputError(
            f"model.normalise: the task is {model.task.name}, and only embeddings have a length; "
            "set task: embedding, or model.output for the features before the head"
        )
    model = _named(recipe, specialised(recipe, model))
    gates.applying(recipe.gates, judging(recipe, model).task)
    return model


def _named(recipe: Recipe, model: VitModel) -> VitModel:
    """`model` with the names in the file `data.classes`, where it has none and they are as many as
    its outputs."""
    listed = recipe.data.classes
    if listed is None or model.class_names is not None or model.num_classes < 2:
        return model
    names = read_classes(Path(listed), set())
    fits = len(names) == model.num_classes
    return replace(model, class_names=tuple(names)) if fits else model


def say_model(model: VitModel) -> None:
    """Say what came of it, and how images are prepared for it."""
    spec = model.preprocess
    note(
        f"{model.architecture.timm}: {_outputs(model)}, images "
        f"{spec.input_size[0]}×{spec.input_size[1]} {spec.interpolation}, crop {spec.crop_pct}, "
        f"mean {spec.mean}, std {spec.std}"
    )


def _outputs(model: VitModel) -> str:
    """What comes out of a model, in words: `classification, 10 outputs`."""
    head = f"{model.num_classes} output(s)" if model.num_classes else "no head"
    if model.subset is not None:
        head += f" of {model.subset.whole.num_classes}"
    return f"{model.task.name}, {head}"
