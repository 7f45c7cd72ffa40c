"""Where inputs come from: paths, and names of what is built in or downloaded."""

import os
from pathlib import Path

from vitcompress.errors import InputError

BUILT_IN = ("timm:", "example:")
"""What begins so is no path."""

CHECKPOINT = "no such file; check the path of the checkpoint"
IMAGES = "no such file or folder; check where the images are said to lie"
CLASSES = "no such file; write one folder name a line"
KEPT = "no such file; write one class to be kept a line, or give a list: classes: [NAME, …]"
CLASSIFIER = "no such file; check the path of the class embeddings"


def exists(path: str | Path) -> bool:
    """Whether there is such a file or folder; there is none whose name is too long."""
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder, in a place that may be looked into."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str | Path) -> bool:
    """Whether there is such a file of data: no device and no pipe."""
    return os.path.isfile(path)  # noqa: PTH113


def check_path(path: str | None, absent: str) -> None:
    """Raise `InputError`, saying what is `absent`, where `path` is one and nothing is there."""
    if path == "":
        raise InputError("a path that is given is empty: it must not be empty; leave it out")
    if path is not None and not path.startswith(BUILT_IN) and not exists(path):
        raise InputError(f"{path}: {absent}")


def check_out(out: Path, kinds: tuple[str, ...], remedy: str) -> None:
    """Raise `InputError` where the file `out` cannot be written, or is not called as one of
    `kinds`; `remedy`: how to call it."""
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.suffix not in kinds:
        raise InputError(f"--out {out}: {remedy}")
    try:
        new = not out.exists()
        out.open("a").close()
        if new:
            out.unlink()
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to: {error.strerror}") from None
