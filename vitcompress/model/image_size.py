"""The image size that a checkpoint was trained at, and the one that it is to be used at."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitcompress.console import note
from vitcompress.errors import InputError
from vitcompress.model.layouts import Converted
from vitcompress.model.naming import skeleton

Size = tuple[int, int]
"""Height and width in pixels."""

POSITIONS = re.compile(r"(.*\.)?(pos_embed|relative_position_bias_table)$")
"""Tensors with a value for each position, which another image size has other positions of."""


@dataclass(frozen=True)
class ImageSizes:
    """`trained`: as far as is known. `used`: what the model is made for; None: timm's default, or
    any size. `options`: the constructor's, which say so."""

    trained: Size | None
    used: Size | None
    options: Mapping[str, Any]

    @property
    def changed(self) -> bool:
        return self.used is not None and self.used != self.trained


def image_sizes(
    converted: Converted, options: Mapping[str, Any], wanted: object, source: str
) -> ImageSizes:
    """The sizes of a checkpoint whose model `converted.timm` names.

    `options`: those of the recipe, `wanted`: its `data.input_size`. Any `img_size` that the tensors
    fit is the size that they were trained at: that of the layout before those of a folder's
    preprocessing, of `options`, and of timm's own model; last comes a square, which is said. Used
    is what is `wanted`, else an `img_size` that does not fit, else the size of the preprocessing.

    Raises `InputError` for positions of no known grid, for sizes that contradict each other, and
    for one that is not made of whole patches.
    """
    name, given = str(converted.timm), {**converted.options, **options}
    model = skeleton(name, {k: v for k, v in given.items() if k != "img_size"}, source)
    folder, asked = size_of(converted.preprocess.get("input_size")), size_of(wanted)
    if (default := _default(model)) is None:  # takes any
        return ImageSizes(folder, asked or folder, options)
    layout, said = size_of(converted.options.get("img_size")), size_of(options.get("img_size"))
    fits = _Fitting(converted.tensors, name, given, source)
    # A layout knows the size of what has tables of relative positions only.
    usual = default if layout is None or fits.embedding is not None else None
    # Of a size that is asked for, the last pixels shall not be left out as it is in training.
    whole = asked if _is_whole(model, asked) else None
    stated = (layout, folder, said, usual, whole)
    trained = next((size for size in stated if size and fits(size)), None)
    if trained is None and (trained := fits.square(model)):
        note(f"its positions are taken for images of {told(trained)} pixels: a square fits them")
    if trained is None and fits.embedding is not None:
        raise InputError(
            f"{source}: its position embedding {list(fits.embedding.shape)} is no square grid of"
            f" patches for timm {name}; set model.options.img_size to [height, width] as trained,"
            " or pass --model NAME"
        )
    other = said if said != trained else None
    if asked and other and asked != other:
        raise InputError(
            f"data.input_size: {told(asked)} is not {told(other)} of model.options.img_size; leave "
            "one of them out"
        )
    used = asked or other or folder or trained
    _check_whole(model, used, trained)
    if used is None or (used == default and "img_size" not in given):
        return ImageSizes(trained, used, options)
    return ImageSizes(trained, used, {**options, "img_size": plain(used)})


def size_of(value: object) -> Size | None:
    """Height and width of what `img_size` and `input_size` may be."""
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) else None


def plain(size: Size) -> int | list[int]:
    """`size` as an option of a constructor."""
    return size[0] if size[0] == size[1] else list(size)


def told(size: Size) -> str:
    return f"{size[0]}×{size[1]}"


@dataclass(frozen=True)
class _Fitting:
    """Whether tensors have the positions of a model for images of some size."""

    tensors: Mapping[str, Tensor]
    name: str
    options: Mapping[str, Any]
    source: str

    @property
    def embedding(self) -> Tensor | None:
        found = self.tensors.get("pos_embed")
        return found if found is not None and found.ndim == 3 else None

    def __call__(self, size: Size) -> bool:
        options = {**self.options, "img_size": plain(size)}
        if (patch := self._patch()) is not None:
            options["patch_size"] = plain(patch)
        try:
            own = skeleton(self.name, options, self.source).state_dict()
        except InputError:
            return False  # a size that this model cannot be made for
        return all(own[key].shape == self.tensors[key].shape for key in self._shared(own))

    def square(self, model: nn.Module) -> Size | None:
        """The square whose patches the embedding has a position each for."""
        patches, own = _patches(model), getattr(model, "pos_embed", None)
        if self.embedding is None or own is None:
            return None
        tokens = self.embedding.shape[1] - (own.shape[1] - patches.num_patches)
        side = math.isqrt(max(tokens, 0))
        height, width = self._patch() or patches.patch_size
        return (side * height, side * width) if side and side**2 == tokens else None

    def _shared(self, own: Mapping[str, Tensor]) -> Iterator[str]:
        return (key for key in self.tensors if key in own and POSITIONS.match(key))

    def _patch(self) -> Size | None:
        """The patch that the stem reads, where a recipe may ask for another."""
        stem = self.tensors.get("patch_embed.proj.weight")
        if "patch_size" not in self.options or stem is None or stem.ndim != 4:
            return None
        return int(stem.shape[2]), int(stem.shape[3])


def _patches(model: nn.Module) -> Any:
    return getattr(model, "patch_embed", None)


def _default(model: nn.Module) -> Size | None:
    """The size of the images that the model was made for; None where it takes any."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    fixed = list(cfg["input_size"][1:]) if cfg.get("fixed_input_size") else None
    return size_of(getattr(_patches(model), "img_size", None) or fixed)


def _check_whole(model: nn.Module, used: Size | None, trained: Size | None) -> None:
    if used is not None and used != trained and not _is_whole(model, used):
        patch = _patch_of(model) or used
        near = [max(1, round(side / part)) * part for side, part in zip(used, patch, strict=True)]
        raise InputError(
            f"data.input_size: {told(used)} is not made of whole patches of {told(patch)} pixels; "
            f"give {told((near[0], near[1]))}"
        )


def _is_whole(model: nn.Module, size: Size | None) -> bool:
    """Whether images of this size are made of whole patches."""
    patch = _patch_of(model)
    if size is None or patch is None:
        return True
    return not any(side % part for side, part in zip(size, patch, strict=True))


def _patch_of(model: nn.Module) -> Size | None:
    return size_of(getattr(_patches(model), "patch_size", None))
