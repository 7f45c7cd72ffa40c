"""A model for images of another size."""

from dataclasses import replace
from typing import Any

from vitcompress.memory import copied
from vitcompress.model.architecture import VitModel


def resized(model: VitModel, grid: tuple[int, int]) -> VitModel | None:
    """`model` for images of so many rows and columns of patches, its positions interpolated.

    None where positions are not those of a table that can be resized (rotary embeddings).
    """
    if model.anatomy.grid is None or not hasattr(model.module, "set_input_size"):
        return None
    module: Any = copied(model.module)
    height, width = module.patch_embed.patch_size
    size = grid[0] * height, grid[1] * width
    module.set_input_size(img_size=size)
    preprocess = model.preprocess.model_copy(update={"input_size": size})
    return replace(model, module=module, preprocess=preprocess)
