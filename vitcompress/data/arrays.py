"""Files of numpy's arrays that others have written: .npy and .npz, read without pickle."""

from collections.abc import Container
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vitcompress.foreign import check_archive

ALONE = ""
"""What the array of a .npy is called."""

BFLOAT16 = np.dtype("V2")
"""Two bytes without a type, as JAX writes bfloat16."""


def read_arrays(
    file: IO[bytes], size: int, wanted: Container[str] | None = None
) -> dict[str, NDArray[Any] | None]:
    """All arrays of numbers in `file`, which has `size` bytes, by name; None for those that are not
    `wanted`.

    What numpy and zipfile raise for damaged files comes through, and `ValueError` for an archive
    that unpacks to far more than it has, for an array that claims more than there is memory, and
    for what is no array of numbers.
    """
    try:
        return _read(file, size, wanted)
    except MemoryError as error:
        raise ValueError(str(error)) from None  # what it claims is lacking, not memory


def _read(
    file: IO[bytes], size: int, wanted: Container[str] | None
) -> dict[str, NDArray[Any] | None]:
    if file.read(2) != b"PK":
        file.seek(0)
        return {ALONE: _numbers(np.load(file, allow_pickle=False))}
    file.seek(0)
    check_archive(file, size)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return {
            name: _numbers(arrays[name]) if wanted is None or name in wanted else None
            for name in arrays.files
        }


def _numbers(array: Any) -> NDArray[Any]:
    if isinstance(array, np.ndarray) and (array.dtype.kind in "biuf" or array.dtype == BFLOAT16):
        return array
    raise ValueError("holds something that is no array of numbers")
