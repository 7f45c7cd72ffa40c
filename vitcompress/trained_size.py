"""What it costs and saves to use a model for images of another size than it was trained for."""

from typing import Any

from vitcompress.data.images import ImageSet
from vitcompress.evaluation import Judged
from vitcompress.measure import cost
from vitcompress.model.architecture import VitModel
from vitcompress.model.image_size import Size, size_of, told
from vitcompress.recipe import Recipe
from vitcompress.report import figures
from vitcompress.tasks import Task

_IMAGES = 100


def recipe_of(recipe: Recipe, size: Size) -> Recipe:
    """`recipe` for images of the `size` that its model was trained for."""
    options = dict(recipe.model.options)
    if size_of(options.get("img_size")) != size:
        options.pop("img_size", None)
    model = recipe.model.model_copy(update={"options": options})
    data = recipe.data.model_copy(update={"input_size": size})
    return recipe.model_copy(update={"model": model, "data": data})


def sample(images: ImageSet) -> ImageSet:
    """At most 100 of `images`, evenly spaced: one may take ten times as long as it does else."""
    return images.subset(range(0, len(images), -(-len(images) // _IMAGES)))


def compared(
    trained: VitModel, judged: Judged, resized: VitModel, judged_resized: Judged, task: Task
) -> tuple[dict[str, Any], str]:
    """Facts of the model as `trained` and `resized`, judged on the same images, and a line."""
    alike = judged.outputs.shape == judged_resized.outputs.shape
    own = judged.figures(task, None)
    against = judged_resized.figures(task, judged if alike else None)
    size, used = trained.preprocess.input_size, resized.preprocess.input_size
    macs = cost.macs(trained)
    ratio = cost.macs(resized) / macs
    labelled, beside = (
        figures.told(each.model_copy(update={"images": None})) for each in (own, against)
    )
    has = f", which has {labelled}" if labelled else ""
    line = (
        f"images of {told(used)} pixels, {told(size)} in training: {100 * ratio:.3g} % of the "
        f"MACs; {beside} against the model at {told(size)}{has}, on {len(judged.outputs)} images"
    )
    facts = {
        "input_size": size,
        "macs": macs,
        "macs_ratio": ratio,
        "figures": own.model_dump(exclude_none=True, exclude={"intervals"}),
        "resized": against.model_dump(exclude_none=True, exclude={"intervals"}),
    }
    return facts, line
