"""The place of an output folder: found fit before the work, and filled when all is done."""

import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

from vitcompress import paths
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
    on the same file system, under a name that belongs to `out`, and is locked: what a run that was
    killed has left there is cleared away, and a second run at the same time is refused.

    Raises `InputError` before the work for a place that holds anything else, that cannot be written
    to, or that is full; `RunError` when the disk fills up on the way. A finished output that cannot
    be put in its place stays where it is, and the `RunError` says where.
    """
    try:
        place = _resolved(out)
        _check_content(place)
        home = place if paths.is_folder(place) else place.parent
        home.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(home).free) < _LEAST_SPACE:
            raise InputError(f"--out {out}: only {free / 1e6:.1f} MB are free there; make room")
        partial = home / _partial_name(place)
        with suppress(OSError):  # killed before somebody made the folder `out`
            _clear_beside(place, home)
        lock = _claim(partial)
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(f"--out {out}: cannot be written to: {why}") from error
    complete = False
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
    finally:
        if not complete:
            shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


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


def _claim(partial: Path) -> int | None:
    """Make `partial`, empty, and lock it; the lock ends with the process, or when it is closed.

    None where there are no locks: there, only who makes the folder has it. Raises `InputError`
    where another run has it, or where it holds a finished output.
    """
    while True:
        try:
            partial.mkdir()
            new = True
        except FileExistsError:
            new = False
        try:
            lock = _lock(partial)
        except FileNotFoundError:  # another run has just ended
            continue
        if lock is None and not new:
            raise InputError(
                f"{partial}: of a run that goes on or was killed; remove it if none goes on"
            )
        if lock is None or _is_at(lock, partial):
            try:
                _clear(partial)
            except BaseException:
                if lock is not None:
                    os.close(lock)
                raise
            return lock
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """A locked descriptor of `folder`; None where the system has no such locks."""
    if sys.platform == "win32":
        return None
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if os.fstat(lock).st_uid != os.geteuid():
        os.close(lock)
        raise InputError(f"{folder}: belongs to somebody else; give another place")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InputError(
            f"{folder}: another run is writing there; wait for it, or give another place"
        ) from None
    except OSError:  # some network file systems
        os.close(lock)
        return None
    return lock


def _is_at(lock: int, path: Path) -> bool:
    """Whether what is locked is still what lies at `path`."""
    try:
        return os.path.samestat(os.fstat(lock), path.lstat())
    except FileNotFoundError:
        return False


def _clear_beside(place: Path, home: Path) -> None:
    other = (place.parent if home == place else place) / _partial_name(place)
    if other.is_dir() and (lock := _claim(other)) is not None:
        other.rmdir()
        os.close(lock)


def _clear(partial: Path) -> None:
    """Empty what a killed run has left. Raises `InputError` where it was finished."""
    if _written(partial):
        raise InputError(
            f"{partial}: a finished output that could not be put in its place; move it away, or "
            "remove it"
        )
    for left in partial.iterdir():
        if stat.S_ISDIR(left.lstat().st_mode):
            shutil.rmtree(left)
        else:
            left.unlink()


def _put(partial: Path, place: Path) -> None:
    """Make the files in `partial` those of `place`; the manifest goes last, as it completes them.

    Whatever happens on the way, the manifest of an earlier output and that in `partial` together
    name all files.
    """
    if partial.parent != place:
        partial.rename(place)
        return
    earlier = _written(place)
    names = sorted({file.name for file in partial.iterdir()}, key=MANIFEST.__eq__)
    for name in names[:-1]:
        (partial / name).replace(place / name)
    for file in place.iterdir():
        if file.name in earlier.difference(names):
            file.unlink()
    (partial / names[-1]).replace(place / names[-1])
    partial.rmdir()
