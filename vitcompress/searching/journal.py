"""The file in which several processes keep what a search has found, each adding to its end."""

import hashlib
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

_DIGEST = "digest"  # of a line


class _Lock(JournalFileOpenLock):
    """A lock that ends with the process that has it, in whatever way that ends.

    Those of Optuna stay for ever, or until it is guessed that their process has ended.
    """

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._lock = FileLock(f"{file}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


class Journal(JournalFileBackend):
    """A journal whose lines each carry a digest, so that one that was damaged is never believed."""

    def __init__(self, file: str) -> None:
        self.lock = _Lock(file)
        super().__init__(file, self.lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        super().append_logs([{**log, _DIGEST: _digest(log)} for log in logs])

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        for log in super().read_logs(log_number_from):
            if log.pop(_DIGEST, None) != _digest(log):
                raise ValueError("a line of it is damaged, or of another version")
            yield log


def journal(file: str) -> Journal:
    """The journal in `file`, without a last line that was cut off, as by a full disk.

    Raises `ValueError` for one that is damaged.
    """
    found = Journal(file)
    found.lock.acquire()  # or a line that another process is writing would be taken for cut off
    try:
        if any(found.read_logs(0)):
            os.truncate(file, Path(file).read_bytes().rfind(b"\n") + 1)
    finally:
        found.lock.release()
    return found


def _digest(log: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(log, sort_keys=True).encode()).hexdigest()[:16]
