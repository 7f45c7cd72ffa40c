"""Folders that belong to one process, until it ends in whatever way.

What a killed process has left is told from what another one is at by a lock, which ends with the
process.
"""

import hashlib
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path

if sys.platform != "win32":
    import fcntl

from vitcompress.errors import InputError

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # locks may not reach others
_PREFIX = f"vitcompress-{_HOST}-"
_ABANDONED = 24 * 3600  # seconds after which a temporary folder goes where there are no locks


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Inside it `folder`, made where it is not there, belongs to this process alone.

    Where there are no locks, only who makes the folder has it. Raises `InputError` where another
    process has it.
    """
    while True:
        try:
            folder.mkdir()
            new = True
        except FileExistsError:
            new = False
        try:
            lock = _lock(folder)
        except FileNotFoundError:  # another process has just ended
            continue
        except BlockingIOError:
            if new:  # and taken for a folder that was left
                continue
            raise InputError(
                f"{folder}: another run is writing there; wait for it, or give another place"
            ) from None
        if lock is None and not new:
            raise InputError(
                f"{folder}: of a run that goes on or was killed; remove it if none goes on"
            )
        if lock is None or _is_at(lock, folder):
            break
        os.close(lock)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


@contextmanager
def scratch(home: Path | None = None) -> Iterator[Path]:
    """An empty folder in `home`, by default where temporary files lie, that goes in the end.

    Those that processes of this host have left, which were killed, go first.
    """
    home = Path(tempfile.gettempdir()) if home is None else home
    _clear(home)
    with ExitStack() as ending:
        yield _made(home, ending)


def to_the_end(clear: Callable[[], object]) -> None:
    """Clear something away, from the start again where that is interrupted."""
    try:
        clear()
    except KeyboardInterrupt:
        clear()
        raise


def empty(folder: Path) -> None:
    """Remove all that is in `folder`."""
    for left in folder.iterdir():
        if stat.S_ISDIR(left.lstat().st_mode):
            shutil.rmtree(left)
        else:
            left.unlink()


@cache
def _clear(home: Path) -> None:
    """Remove from `home` what killed processes have left; once, for it may hold very much else."""
    for left in home.glob(f"{_PREFIX}*"):
        with suppress(OSError, InputError):  # in use, gone, or somebody else's
            _remove_abandoned(left)


def _made(home: Path, ending: ExitStack) -> Path:
    """A new folder in `home`, locked and there until `ending`."""
    while True:
        folder = home / f"{_PREFIX}{uuid.uuid4().hex[:16]}"
        # Before it is there: an interruption may come as soon as it is.
        ending.callback(to_the_end, partial(shutil.rmtree, folder, ignore_errors=True))
        folder.mkdir(0o700)
        with suppress(FileNotFoundError, BlockingIOError):  # taken for one that was left
            lock = _lock(folder)
            if lock is None:
                return folder
            ending.callback(os.close, lock)
            if _is_at(lock, folder):
                return folder


def _remove_abandoned(folder: Path) -> None:
    lock = _lock(folder)
    if lock is not None or folder.stat().st_mtime < time.time() - _ABANDONED:
        shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """A locked descriptor of `folder`; None where the system has no such locks.

    Raises `BlockingIOError` where it is locked, and `InputError` where it is somebody else's.
    """
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
        raise
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
