"""From the bytes of a file to pixels, by Pillow, numpy or tifffile."""

import io
from collections.abc import Iterable
from functools import cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLESPERPIXEL, TiffImageFile

from vitcompress.data.arrays import read_arrays
from vitcompress.errors import InputError
from vitcompress.foreign import check_expansion


class Prepared(NamedTuple):
    """The input of a model as whoever gives it has prepared it: `values` float32 [C, H, W]."""

    values: NDArray[np.float32]


Picture = Image.Image | NDArray[Any]
"""A picture, or an array [H, W], [H, W, C] or [C, H, W] of any type."""

Pixels = Picture | Prepared
"""One image."""

# The only decoders that are tried, whatever a file is called (others start programs, or guess).
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_ARRAYS = frozenset((".npy", ".npz"))
_MOST_PIXELS = 100_000_000  # 400 MB as Pillow holds them
_PREPARED = "pixels"  # what the only array of a file of them is called
_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_TIFF = frozenset((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def images_in(names: Iterable[str]) -> list[str]:
    """Those of the `names` of files that are images, sorted: pictures, and where there are none,
    arrays, which beside pictures hold something else."""
    found = [name for name in sorted(names) if is_image(name)]
    pictures = [name for name in found if PurePosixPath(name).suffix.lower() not in _ARRAYS]
    return pictures or found


def is_image(name: str) -> bool:
    """Whether a file of this name may be an image: hidden ones are not."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in _extensions() and not hidden


@cache
def _extensions() -> frozenset[str]:
    known = Image.registered_extensions().items()
    return frozenset(ext for ext, kind in known if kind in _FORMATS) | _ARRAYS


def decode(data: bytes) -> Pixels:
    """Decode the bytes of an image file, whose first tell its kind.

    What Pillow, numpy and tifffile raise for damaged files comes through. Raises `InputError` for
    several arrays in one file, and for a compression that is not to be had here.
    """
    if data.startswith((_NPY, _ZIP)):
        return _only_array(data)
    if data[:4] in _TIFF:
        return _tiff(data)
    image = _opened(data)
    image.load()
    return image


def encode(image: NDArray[Any] | Prepared) -> bytes:
    """The bytes that `decode` makes the same `image` of."""
    file = io.BytesIO()
    if isinstance(image, Prepared):
        np.savez(file, allow_pickle=False, **{_PREPARED: image.values})
    else:
        np.save(file, image, allow_pickle=False)
    return file.getvalue()


def _opened(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:  # its message is the address of a buffer
        raise UnidentifiedImageError("not an image, or cut off at the start") from None
    check_pixels(image.width, image.height)
    return image


def check_pixels(width: float, height: float, most: int = _MOST_PIXELS) -> None:
    """Raise `ValueError` for a picture that is too large to be held, or would become so."""
    if width * height > most:
        raise ValueError(f"would have {width:.0f}×{height:.0f} pixels; the most is {most}")


def _only_array(data: bytes) -> NDArray[Any] | Prepared:
    arrays = read_arrays(io.BytesIO(data), len(data))
    if len(arrays) != 1:
        keys = ", ".join(arrays) or "none"
        raise InputError(f"holds {len(arrays)} arrays ({keys}); an image is one array")
    ((name, array),) = arrays.items()
    assert array is not None  # all are wanted
    return Prepared(array) if name == _PREPARED else array


def _tiff(data: bytes) -> Picture:
    """By Pillow where it keeps all values, else by tifffile. Grey pages of one size are channels of
    one image."""
    try:
        image = _opened(data)
    except UnidentifiedImageError:
        return _other_tiff(data)
    if not isinstance(image, TiffImageFile):
        raise UnidentifiedImageError("starts as a TIFF does, and is none")
    samples = image.tag_v2.get(SAMPLESPERPIXEL, 1)
    bits = max(image.tag_v2.get(BITSPERSAMPLE, (1,)))
    if bits > 8 and not image.mode.startswith(("I;16", "F")):  # it would keep the high bytes
        return _other_tiff(data)
    if samples != len(image.getbands()):  # it would leave some out
        array = _other_tiff(data)
        return Image.fromarray(array) if image.mode == "RGB" and samples == 4 else array
    if samples == 1 and bits >= 8 and image.mode != "P":
        check_pixels(image.width * getattr(image, "n_frames", 1), image.height)
        frames = ImageSequence.all_frames(image)
        pages = [np.asarray(page) for page in frames if page.size == frames[0].size]
        if len(pages) > 1:
            return np.stack(pages)
    image.load()
    return image


def _other_tiff(data: bytes) -> NDArray[Any]:
    from tifffile import TiffFile

    try:
        with TiffFile(io.BytesIO(data)) as file:
            first = file.series[0]
            check_expansion(first.size * first.dtype.itemsize if first.dtype else 0, len(data))
            array: NDArray[Any] = first.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise InputError(
            f"cannot be decompressed ({error}): pip install 'vitcompress[tiff]', or save it without"
            " compression"
        ) from error
    return array
