"""Where images come from: each kind of source is listed as names, classes and a way to read."""

import io
import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from vitcompress import paths
from vitcompress.data.arrays import read_arrays
from vitcompress.data.decoding import encode, images_in, is_image
from vitcompress.errors import InputError
from vitcompress.foreign import check_regular, reading
from vitcompress.lines import printable

_EXAMPLE_COUNTS = {"calibration": 512, "evaluation": 1000}
_IMAGE_BYTES = 512 << 20
_LABEL_LETTERS = 200
_TAR_BLOCK, _TAR_READS = 512, 100  # bytes, and reads that each archive may take beside its blocks

Label = int | tuple[int, ...]
"""The place of a class, or 0 or 1 for each output of a model."""


@dataclass(frozen=True)
class Listing:
    """The images of a source, before labels are given and a sample is drawn.

    `classes` has one entry an image: its class name, its label where the source stores labels,
    or None. `class_names` are all class names in label order, those without images included.
    `fetch(i)` returns image i as the bytes of an image file.
    """

    names: list[str]
    classes: list[str | Label | None]
    class_names: list[str]
    fetch: Callable[[int], bytes]


def list_source(source: str) -> Listing:
    """List a folder, a .tar, a .npz or `example:glyphs/SPLIT`.

    Raises InputError when the source is missing, of no known kind, damaged or without images.
    """
    if source.startswith("example:"):
        return _example(source)
    path = Path(source)
    if paths.is_folder(path):
        return _folder(path)
    kinds = {".tar": _tar, ".npz": _npz}
    if not paths.exists(path):
        raise InputError(f"{path}: no such file or folder; check where the images are said to lie")
    if path.suffix.lower() not in kinds:
        raise InputError(f"{path}: images come from a folder, a .tar or a .npz, not from this file")
    check_regular(path)
    return kinds[path.suffix.lower()](path)


def _no_images(path: Path) -> InputError:
    return InputError(
        f"no images found in {path}; expected .jpg, .png, .tif, .npy, … in it or in class folders"
    )


def _folder(root: Path) -> Listing:
    """A class is a folder directly in `root`, and has the images at any depth below it."""
    found, folders = _walked(root)
    files = {path.relative_to(root).as_posix(): path for path in _distinct(found)}
    raw = images_in(files)
    shards = [files[name] for name in sorted(files) if name.lower().endswith(".tar")]
    if shards and not raw:
        return _together({path.relative_to(root).as_posix(): _tar(path) for path in shards})
    if not raw:
        raise _no_images(root)
    names = [printable(name) for name in raw]
    classes = [printable(name) for name in sorted(f.name for f in folders if f.parent == root)]
    return Listing(names, _first_folders(names), classes, lambda i: _content(files[raw[i]]))


def _content(file: Path) -> bytes:
    if (size := file.stat().st_size) > _IMAGE_BYTES:
        raise ValueError(f"has {size / 1e6:,.0f} MB, which is no image")
    return file.read_bytes()


def _together(parts: Mapping[str, Listing]) -> Listing:
    """The images of several listings, named `PART/NAME`, one part after the other."""
    places = [(part, i) for part in parts.values() for i in range(len(part.names))]

    def fetch(index: int) -> bytes:
        part, i = places[index]
        return part.fetch(i)

    return Listing(
        names=[f"{name}/{each}" for name, part in parts.items() for each in part.names],
        classes=[each for part in parts.values() for each in part.classes],
        class_names=sorted({each for part in parts.values() for each in part.class_names}),
        fetch=fetch,
    )


def _walked(root: Path) -> tuple[list[Path], list[Path]]:
    """All files below `root` and all folders, those that are hidden left out.

    Links to folders are followed, after all else. Each real folder is entered once, and none that
    `root` lies in: folders that hold each other would never end.
    """
    home = Path(os.path.realpath(root))
    entered = {_identity(folder) for folder in (home, *home.parents)}
    files: list[Path] = []
    folders: list[Path] = []

    def enter(folder: Path) -> bool:
        is_new = (identity := _identity(folder)) not in entered
        entered.add(identity)
        folders.extend([folder] if is_new else [])
        return is_new

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror}; make the folder readable")

    starts = [root]
    while starts:
        links: list[Path] = []
        for start in starts:
            for folder, below, names in os.walk(start, onerror=refuse):
                inside = [Path(folder, name) for name in below if not name.startswith(".")]
                linked = {path for path in inside if path.is_symlink()}
                links += linked
                below[:] = [path.name for path in inside if path not in linked and enter(path)]
                files += [Path(folder, name) for name in names]
        starts = [link for link in sorted(links) if enter(link)]
    return files, folders


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _distinct(files: Iterable[Path]) -> Iterator[Path]:
    """The `files` without what cannot be a file of data, and without a second name of the same one.

    The one that stays is no link, where there is such, and the first by name.
    """
    seen = set()
    for path in sorted(files, key=lambda path: (path.is_symlink(), path)):
        try:
            found = path.stat()
        except OSError:
            yield path  # a link to nothing, which reading will tell
            continue
        identity = (found.st_dev, found.st_ino)
        if stat.S_ISREG(found.st_mode) and identity not in seen:
            seen.add(identity)
            yield path


def _first_folders(names: list[str]) -> list[str | Label | None]:
    return [name.partition("/")[0] if "/" in name else None for name in names]


def _tar(path: Path) -> Listing:
    """Classes are KEY.cls texts beside KEY.jpg (webdataset), otherwise the first folder.

    The archive is indexed once; each image is read at its offset when it is asked for. Links are
    followed to what the archive holds.
    """
    places: dict[str, tuple[int, int]] = {}
    texts: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    problem, remedy = "not a readable, uncompressed tar", "pack it again"
    with (
        reading(path, problem, remedy),
        _Ending(path) as file,
        tarfile.open(fileobj=file, mode="r:") as archive,
    ):
        members = {posixpath.normpath(member.name): member for member in archive}
        # Of several names of one file the one that is no link stays, as in folders.
        for member in sorted(members.values(), key=lambda member: not member.isfile()):
            name = PurePosixPath(member.name)
            if not (is_image(member.name) or name.suffix == ".cls"):
                _check_folder(member, members, path)
                continue
            held = _followed(member, members, path)
            if not held.isfile():
                continue
            if held.issparse() or held.size > _IMAGE_BYTES:
                raise ValueError(f"{held.name} has holes, or {held.size / 1e6:,.0f} MB")
            if name.suffix == ".cls":
                texts[_key(printable(str(name)))] = _text(archive, held, path)
            elif (place := (held.offset_data, held.size)) not in seen:
                seen.add(place)
                places[printable(str(name))] = place
    names = images_in(places)
    if not names:
        raise _no_images(path)

    def fetch(i: int) -> bytes:
        offset, size = places[names[i]]
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    if texts:
        classes = _parsed([texts.get(_key(name)) for name in names])
    else:
        classes = _first_folders(_without_shared_folders(names))
    return Listing(names, classes, sorted({c for c in classes if isinstance(c, str)}), fetch)


class _Ending(io.FileIO):
    """A tar that tarfile reads to its end and no further: lists and offsets in it can make that
    wait for more, or go back, without end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._left = _TAR_READS + 4 * path.stat().st_size // _TAR_BLOCK

    def read(self, size: int | None = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise tarfile.ReadError("its members come to no end")
        return super().read(-1 if size is None else size)


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> str:
    """The label in `member`. Raises `InputError` for one that no class has."""
    content = archive.extractfile(member)
    text = content.read(_LABEL_LETTERS + 1).decode().strip() if content else ""
    if len(text) > _LABEL_LETTERS:
        raise InputError(
            f"{path}: {member.name} holds more than {_LABEL_LETTERS} letters; write the name or the"
            " number of a class there"
        )
    return text


def _followed(
    member: tarfile.TarInfo, members: Mapping[str, tarfile.TarInfo], path: Path
) -> tarfile.TarInfo:
    """What `member` leads to, by as many links as there are."""
    held = member
    for _ in members:
        if not (held.islnk() or held.issym()):
            return held
        if (target := _target(held)) not in members:
            break
        held = members[target]
    raise _leads_nowhere(member, path)


def _check_folder(
    member: tarfile.TarInfo, members: Mapping[str, tarfile.TarInfo], path: Path
) -> None:
    """Raise `InputError` for a link to a folder elsewhere: its images would be missing. The images
    of one that is in the archive are found under its own name."""
    if member.issym() and not PurePosixPath(member.name).suffix:
        target = _target(member)
        inside = target == "." or any(f"{name}/".startswith(f"{target}/") for name in members)
        if not inside:
            raise _leads_nowhere(member, path)


def _target(link: tarfile.TarInfo) -> str:
    """The name that `link` leads to: a symbolic one starts where it lies, a hard one at the top."""
    home = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(home, link.linkname))


def _leads_nowhere(member: tarfile.TarInfo, path: Path) -> InputError:
    return InputError(
        f"{path}: {member.name} is a link to {member.linkname}, which leads to nothing in it; "
        "pack it again with what links lead to (tar --dereference)"
    )


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _parsed(texts: list[str | None]) -> list[str | Label | None]:
    """Labels when every text is a number, otherwise class names."""
    if all(text is None or re.fullmatch(r"-?\d+", text) for text in texts):
        return [None if text is None else int(text) for text in texts]
    return list(texts)


def _without_shared_folders(names: list[str]) -> list[str]:
    """Drop leading folders that all names share, but not the class folder."""
    while all(name.count("/") >= 2 for name in names) and len(set(_first_folders(names))) == 1:
        names = [name.partition("/")[2] for name in names]
    return names


def _npz(path: Path) -> Listing:
    named = {"images": "x", "labels": "y"}
    remedy = "write it with numpy.savez, numbers only"
    with reading(path, "not readable as plain arrays", remedy), path.open("rb") as file:
        arrays = read_arrays(file, path.stat().st_size, {*named, *named.values()})
    images, labels = (arrays.get(key, arrays.get(short)) for key, short in named.items())
    if images is None:
        keys = ", ".join(filter(None, arrays)) or "nothing"
        raise InputError(f"{path}: no array 'images' or 'x' in it, only {keys}; {remedy}")
    return _arrays(images, labels, [], str(path))


def _example(source: str) -> Listing:
    example, _, split = source.removeprefix("example:").partition("/")
    if example != "glyphs" or split not in _EXAMPLE_COUNTS:
        splits = " or ".join(f"example:glyphs/{name}" for name in _EXAMPLE_COUNTS)
        raise InputError(f"{source}: there is no such example; use {splits}")
    from vitcompress.example.glyphs import CLASSES, draw

    images, labels = draw(split, _EXAMPLE_COUNTS[split])
    return _arrays(images, labels, list(CLASSES), source)


def _arrays(
    images: NDArray[np.generic],
    labels: NDArray[np.int64] | None,
    class_names: list[str],
    source: str,
) -> Listing:
    """List images [n, H, W], [n, H, W, C] or [n, C, H, W] as files of arrays, with labels as in
    `Label`: integers [n], or 0 and 1 [n, outputs]."""
    if images.ndim not in (3, 4):
        raise InputError(
            f"{source}: images are {images.dtype} {list(images.shape)}; "
            "expected [n, H, W], [n, H, W, C] or [n, C, H, W]"
        )
    if images.size == 0:
        raise InputError(f"{source}: no images in it, shape {list(images.shape)}")
    count = len(images)
    classes: list[str | Label | None] = [None] * count
    if labels is not None:
        single = labels.ndim == 1 and labels.dtype.kind in "iu" and labels.min() >= 0
        matrix = labels.ndim == 2 and labels.size > 0 and bool(np.isin(labels, (0, 1)).all())
        if len(labels) != count or not (single or matrix):
            raise InputError(
                f"{source}: labels are {labels.dtype} {list(labels.shape)}; expected integers from "
                f"0, [{count}], or 0 and 1 for each output, [{count}, outputs]"
            )
        classes = [int(label) if single else tuple(map(int, label)) for label in labels]
    names = [f"{i:06d}" for i in range(count)]
    return Listing(names, classes, class_names, lambda i: encode(images[i]))
