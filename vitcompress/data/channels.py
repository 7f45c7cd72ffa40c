"""The channels of an image, as a model takes them: a picture of 8 bits, or floats by channel."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcompress.data.decoding import Picture
from vitcompress.errors import InputError

_PICTURES = {1: "L", 3: "RGB"}
_APART = ("L", "LA", "RGB", "RGBA", "RGBX")  # modes whose values are those of their channels
_WHOLE = ("uint8", "uint16", "int16")


def fitted(image: Picture, channels: int, floats: bool) -> Image.Image | NDArray[np.float32]:
    """`image` as a model of so many `channels` takes it.

    Where that keeps all values, and no `floats` are asked for, it is a picture, L or RGB. Otherwise
    it is [channels, H, W]: whole numbers over the largest of their type, floats as they are.

    Pictures become L or RGB as torchvision's ImageFolder does it, and an array [H, W], or one
    [H, W, 3] of 8 bits, is taken for a picture by models of 1 or 3 channels. For other models, and
    of other arrays, the channels are those of the image, none mixed or left out: the first or the
    last axis of an array, whichever has so many.

    Raises `InputError` where they do not fit, and for numbers of unknown range; `ValueError` for
    floats that are no numbers.
    """
    if isinstance(image, np.ndarray):
        image = _held(image, channels)
    if isinstance(image, Image.Image):
        image = _picture(image, channels)
        if isinstance(image, Image.Image) and not floats:
            return image
    return _floats(np.asarray(image), channels)


def _held(array: NDArray[np.generic], channels: int) -> Picture:
    """`array` with its channels last, as a picture where it can be one."""
    axes = {axis for axis in (0, 2) if array.ndim == 3 and array.shape[axis] == channels}
    grey = array.ndim == 2 and channels in _PICTURES
    eight = array.dtype == np.uint8
    mixed = eight and channels in _PICTURES and array.ndim == 3 and array.shape[2] == 3
    if len(axes) > 1 or not (axes or grey or mixed):
        both = "both its first and its last axis have"
        which = both if axes else "neither its first nor its last axis has"
        raise InputError(
            f"has the shape {list(array.shape)}, and the model {channels} channel(s): {which} so"
            f" many; give [H, W, {channels}] or [{channels}, H, W]"
        )
    if axes == {0}:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return Image.fromarray(array) if eight and channels in _PICTURES else array


def _picture(image: Image.Image, channels: int) -> Picture:
    """`image` with the channels of a model: a picture for 1 and 3, where it has 8 bits."""
    if image.mode.startswith("I;16") or image.mode == "F":
        return np.asarray(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours as the direct way, which warns
    if image.mode != "I" and channels in _PICTURES:
        return image.convert(_PICTURES[channels])
    return np.asarray(image if image.mode in (*_APART, "I") else image.convert("RGB"))


def _floats(array: NDArray[np.generic], channels: int) -> NDArray[np.float32]:
    """[H, W] or [H, W, C] as floats [channels, H, W]; one channel serves for three."""
    kind = array.dtype
    if kind.name not in _WHOLE and kind.kind != "f":
        raise InputError(
            f"has pixels of type {kind}, whose range is not known; give {', '.join(_WHOLE)} or"
            " floats"
        )
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] == 1 and channels == 3:
        array = np.repeat(array, 3, 2)
    if array.shape[2] != channels:
        raise InputError(
            f"has {array.shape[2]} channel(s), and the model {channels}; give images with those"
            " that the model was trained on"
        )
    values = np.ascontiguousarray(array.transpose(2, 0, 1), np.float32)
    if not np.isfinite(values).all():
        raise ValueError("holds pixels that are NaN or infinite")
    if kind.kind != "f":
        values /= np.iinfo(kind.name).max
    return values
