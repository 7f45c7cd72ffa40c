"""Files that others have written: what may be opened, and what their readers raise."""

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vitcompress.errors import InputError, ShortageError, VitcompressError, lacks_memory
from vitcompress.lines import one_line

TEXT_BYTES = 16 << 20
"""What a text may have where nothing else is said: lists of 20,000 classes have 2 MB."""

# A file of this size with less than a share of it on the disk is one that was never filled.
_HOLLOW_BYTES, _HOLLOW_SHARE = 64 << 20, 16
# What an archive may unpack to: photographs and weights shrink to half at best, drawings to 1 %.
_SMALL_BYTES, _MOST_TIMES = 64 << 20, 100
_ENCRYPTED = 1  # of the flags of a member


@contextmanager
def reading(file: Path | str, problem: str, remedy: str) -> Iterator[None]:
    """Inside it, a library reads `file`: whatever that raises becomes an `InputError`, or where the
    memory does not do for it, a `ShortageError`.

    Readers of damaged files raise almost anything, and their own exceptions share no base class:
    nothing but the reading belongs inside. `problem`: what is then wrong with the file.
    """
    try:
        yield
    except VitcompressError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise ShortageError(file) from error
        raise InputError(f"{file}: {problem} ({one_line(error)}); {remedy}") from error


def check_regular(file: Path, most: int | None = None) -> None:
    """Raise `InputError` for what is no file of data: a device or a pipe, which may have no end,
    one that was made and never filled, and one of more than `most` bytes."""
    with reading(file, "cannot be read", "make it readable"):
        found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
        raise InputError(f"{file}: is {kind} and no file; give a file")
    if most is not None and found.st_size > most:
        raise InputError(
            f"{file}: has {found.st_size / 1e6:,.0f} MB, and at most {most / 1e6:,.1f} are read of "
            "such a file; give another"
        )
    held = getattr(found, "st_blocks", 0) * 512  # 0 also where the system does not say
    if found.st_size > _HOLLOW_BYTES and 0 < held < found.st_size / _HOLLOW_SHARE:
        raise InputError(
            f"{file}: most of its {found.st_size / 1e9:.1f} GB were never written; copy or "
            "download it again"
        )


def text_of(file: Path, remedy: str, most: int = TEXT_BYTES) -> str:
    """The text in `file`. Raises `InputError` where it holds none in UTF-8, or more than `most`
    bytes."""
    check_regular(file, most)
    with reading(file, "cannot be read", "make it readable"):
        content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{file}: not text in UTF-8; {remedy}") from None


def check_archive(file: Path | IO[bytes], size: int) -> None:
    """Raise `ValueError` for a zip of `size` bytes with members that are encrypted, packed in a way
    that is not common, or would unpack to much more than there is."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    for member in members:
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(f"{member.filename} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename} is packed by neither storing nor deflating")
    check_expansion(sum(member.file_size for member in members), size)


def check_expansion(claimed: int, size: int) -> None:
    """Raise `ValueError` where something of `size` bytes claims to hold far more of them."""
    if claimed > _SMALL_BYTES + _MOST_TIMES * size:
        raise ValueError(f"claims to hold {claimed / 1e9:,.1f} GB in {size / 1e6:,.1f} MB")
