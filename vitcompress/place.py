"""The place of an output folder: found fit before the work, and filled when all is done."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vitcompress import paths
from vitcompress.claims import claimed, empty, scratch, to_the_end
from vitcompress.errors import InputError, RunError
from vitcompress.foreign import reading, text_of

MANIFEST = "manifest.json"
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"}  # of file managers and systems
_LEAST_SPACE = 16 << 20  # bytes; less is not even enough for a small model and its report


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A new folder to write to, whose files become those of `out` when all went well.

    A folder that exists is filled in place, so that it may be a mount or the target of a link;
    another one appears by one renaming. An earlier output in `out` is replaced. The new folder lies
    on the same file system, under a name that belongs to `out`, and is claimed: what a run that was
    killed has left there is cleared away, or put in its place where it was finished, and a second
    run at the same time is refused.

    Raises `InputError` before the work for a place that holds anything else, that cannot be written
    to, or that is full; `RunError` when the disk fills up on the way. A finished output that cannot
    be put in its place stays where it is, and the `RunError` says where.
    """
    complete = False

    def discard(partial: Path) -> None:
        if not complete:
            to_the_end(lambda: shutil.rmtree(partial, ignore_errors=True))

    with ExitStack() as ending:
        try:
            place = _resolved(out)
            _check_content(place)
            _put_earlier(place)
            home = place if paths.is_folder(place) else place.parent
            ending.callback(_remove_empty, [f for f in (home, *home.parents) if not f.exists()])
            home.mkdir(parents=True, exist_ok=True)
            _check_room(out, home)
            partial = home / _partial_name(place)
            with suppress(OSError):  # killed before somebody made the folder `out`
                _clear_beside(place, home)
            ending.enter_context(claimed(partial))
            ending.callback(discard, partial)
            empty(partial)
        except OSError as error:
            why = error.strerror or str(error)
            raise InputError(f"--out {out}: cannot be written to: {why}") from error
        try:
            yield partial
            complete = True
            _put(partial, place)
        except OSError as error:
            where = f"{error.filename or out}: {error.strerror or error}"
            left = (
                f"the result is complete; what is not in {place} lies in {partial}"
                if complete
                else f"nothing was left in {out}"
            )
            raise RunError(f"{where}; {left}") from error
        except KeyboardInterrupt:
            if complete:
                _put(partial, place)  # a few renamings, and the output is whole
            raise


def check_shared(out: Path) -> None:
    """Raise `InputError` where the folder `out`, which several processes may fill, cannot be made
    or written to, or is full. Nothing is left there."""
    place = _resolved(out)
    home = next(each for each in (place, *place.parents) if paths.exists(each))
    if not paths.is_folder(home):
        raise InputError(f"--out {out}: {home} is no folder; give another place")
    try:
        with scratch(home):
            _check_room(out, home)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to: {error.strerror}") from error


def _check_room(out: Path, home: Path) -> None:
    if (free := shutil.disk_usage(home).free) < _LEAST_SPACE:
        raise InputError(f"--out {out}: only {free / 1e6:.1f} MB are free there; make room")


def _remove_empty(folders: Sequence[Path]) -> None:
    def remove() -> None:
        with suppress(OSError):  # somebody has put something there
            for folder in filter(paths.exists, folders):
                folder.rmdir()

    to_the_end(remove)


def _resolved(out: Path) -> Path:
    """Where links lead to. Raises `InputError` for a link that leads to itself."""
    place = Path(os.path.realpath(out))  # which, unlike `resolve`, is not angry with such a link
    if place.is_symlink():
        raise InputError(f"--out {out}: is a link that leads nowhere")
    return place


def _partial_name(place: Path) -> str:
    """Short, as the name of `place` may be as long as names can be."""
    return f".vitcompress-{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:12]}"


def _check_content(place: Path) -> None:
    """Raise `InputError` where `place` holds what is no earlier output."""
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(mode):
        raise InputError(f"--out {place}: is no folder; give another place")
    partial = _partial_name(place)
    ours = {partial} | _written(place) | _written(place / partial)
    others = sorted(
        file.name
        for file in place.iterdir()
        if file.name not in _LITTER
        and (file.name not in ours or not (file.is_file() or file.name == partial))
    )
    if others and not _written(place):
        raise InputError(
            f"--out {place}: exists and is no output of vitcompress; give another place"
        )
    if others:
        raise InputError(
            f"--out {place}: holds {others[0]}, which is no part of the output there; move it "
            "away, or give another place"
        )


def _written(folder: Path) -> set[str]:
    """The names of the files of an output in `folder`; none where there is no such."""
    file = folder / MANIFEST
    try:
        with reading(file, "not readable as a manifest", "run again"):
            manifest = json.loads(text_of(file, "run again"))
            ours = "vitcompress" in manifest["versions"]
            return {MANIFEST, *map(str, manifest["outputs"])} if ours else set()
    except InputError:  # what lies there is not ours
        return set()


def _put_earlier(place: Path) -> None:
    """Put a finished output in its place that a killed run, or a full disk, has left beside it.

    Raises `InputError` where that cannot be, as no output is ever thrown away.
    """
    for home in (place, place.parent):
        partial = home / _partial_name(place)
        if not _written(partial):
            continue
        try:
            with claimed(partial):
                _put(partial, place)
        except OSError as error:
            raise InputError(
                f"{partial}: a finished output that could not be put in its place "
                f"({error.strerror or error}); move it away, or remove it"
            ) from error


def _clear_beside(place: Path, home: Path) -> None:
    other = (place.parent if home == place else place) / _partial_name(place)
    if other.is_dir():
        with claimed(other):
            shutil.rmtree(other)


def _put(partial: Path, place: Path) -> None:
    """Make the files in `partial` those of `place`; the manifest goes last, as it completes them.

    Whatever happens on the way, the manifest of an earlier output and that in `partial` together
    name all files, and doing it again goes on.
    """
    if not partial.exists():
        return
    earlier, names = _written(place), _written(partial)
    if partial.parent != place and not earlier:
        partial.rename(place)
        return
    for file in sorted(partial.iterdir()):
        if file.name != MANIFEST:
            file.replace(place / file.name)
    for file in place.iterdir():
        if file.name in earlier - names:
            file.unlink()
    (partial / MANIFEST).replace(place / MANIFEST)
    partial.rmdir()
