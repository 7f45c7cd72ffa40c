"""Results that can be computed again, kept for later runs: a convenience that never stops one.

An entry is a file named KIND-KEY. It ends in a digest of its name and of what comes before, so that
one that was damaged, cut off or mixed up is never used.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
from filelock import FileLock
from torch import Tensor

from vitcompress import parallel, targets
from vitcompress.claims import scratch
from vitcompress.console import note
from vitcompress.export.folder import write_tensors
from vitcompress.measure.latencies import LatencyTable, machine

_LAYOUT = 2  # of an entry's file
_DIGEST = 64  # characters, of SHA-256
_ENTRIES = 4  # of a kind that stay
_LOCKED = 10.0  # seconds to wait for another run that adds to the same entry

T = TypeVar("T")


@dataclass(frozen=True)
class ResultKind(Generic[T]):
    """A kind of results. `name`: without a hyphen. `version`: of how they are computed and written
    down, part of the key. `save`: writes one to a file that is not there yet."""

    name: str
    version: int
    save: Callable[[T, Path], object]
    load: Callable[[bytes], T]


def tensors(name: str, version: int) -> ResultKind[Mapping[str, Tensor]]:
    """A kind of results that are tensors by name."""

    return ResultKind(name, version, write_tensors, safetensors.torch.load)


def values(name: str, version: int) -> ResultKind[Any]:
    """A kind of results that JSON can hold; tuples come back as lists."""
    return ResultKind(
        name, version, lambda value, file: file.write_text(json.dumps(value)), json.loads
    )


class Cache:
    """The entries in `folder`; without `resume`, those that are there are not used.

    Trouble with files is said in one line, that of writing only once, and the run goes on. Of
    several processes, the first reads and writes for all.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder, self.resume = folder, resume
        self._failed = False

    def get(self, kind: ResultKind[T], identity: object) -> T | None:
        """The result of this kind for `identity`, anything that JSON can hold; None: not there."""
        if not self.resume:
            return None
        file = self.folder / entry_name(kind, identity)
        found = parallel.from_first(lambda: self._read(file))
        if found is None:
            return None
        _say(f"{kind.name} results reused from {file.name}")
        return kind.load(found)

    def put(self, kind: ResultKind[T], identity: object, value: T) -> None:
        """Keep `value`; of each kind the few newest entries stay."""
        self._keep(entry_name(kind, identity), lambda file: _write(file, kind, value))

    def add(
        self, kind: ResultKind[dict[str, Any]], identity: object, value: Mapping[str, object]
    ) -> None:
        """Keep `value` beside what the entry holds, with or without `resume`.

        Several runs can add to an entry at once.
        """

        def write(file: Path) -> None:
            with FileLock(file.with_name(f"{file.name}.lock"), timeout=_LOCKED):
                found = self._read(file)
                known = {} if found is None else kind.load(found)
                _write(file, kind, {**known, **value})

        self._keep(entry_name(kind, identity), write)

    def _keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Write the entry `name`; what goes wrong is said once."""
        if not parallel.is_first():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(self.folder / name)
            _tidy(self.folder / name)
        except (OSError, NotImplementedError) as error:  # the latter: no locks on this disk
            if not self._failed:
                _say(f"results are not kept for later runs: {error}")
            self._failed = True

    def _read(self, file: Path) -> bytes | None:
        """What an entry holds, where it is whole."""
        try:
            with file.open("rb") as stream:
                found = stream.read(max(0, file.stat().st_size - _DIGEST))
                digest = stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            _say(f"{file.name} cannot be read and is not used: {error}")
            return None
        if digest != _digest(file, io.BytesIO(found)):
            _say(f"{file.name} is damaged and is not used")
            return None
        return found


def entry_name(kind: ResultKind[T], identity: object) -> str:
    """The name of the file of an entry."""
    whole = json.dumps(
        [_LAYOUT, kind.name, kind.version, identity], sort_keys=True, separators=(",", ":")
    )
    return f"{kind.name}-{hashlib.sha256(whole.encode()).hexdigest()[:32]}"


def _digest(file: Path, content: io.BufferedIOBase) -> bytes:
    named = hashlib.file_digest(content, lambda: hashlib.sha256(file.name.encode()))
    return named.hexdigest().encode()


def _write(file: Path, kind: ResultKind[T], value: T) -> None:
    """Write an entry such that none ever sees a part of it."""
    with scratch(file.parent) as home:
        whole = home / file.name
        kind.save(value, whole)
        with whole.open("r+b") as stream:
            stream.write(_digest(file, stream))
        whole.replace(file)


def _tidy(file: Path) -> None:
    """Remove old entries of the kind of `file`."""
    ages = dict[Path, float]()
    kind = file.name.rpartition("-")[0]
    for other in file.parent.glob(f"{kind}-*"):
        with contextlib.suppress(FileNotFoundError):  # another run tidies too
            ages[other] = other.stat().st_mtime
    entries = sorted((f for f in ages if f.suffix != ".lock"), key=lambda f: ages[f])
    for old in entries[:-_ENTRIES]:
        old.unlink(missing_ok=True)


def _say(text: str) -> None:
    note(f"  {text}")


LATENCIES: ResultKind[dict[str, Any]] = values("latency", 1)


@contextlib.contextmanager
def latencies(cache: Cache, target: str = targets.DEFAULT) -> Iterator[LatencyTable]:
    """A table of latencies of this machine to read and fill; what is new in it is kept.

    `target`: the runtime that they are of.
    """
    table = LatencyTable(cache.get(LATENCIES, machine(target)) or {}, target)
    known = set(table.grids)
    try:
        yield table
    finally:
        if new := {name: grid for name, grid in table.grids.items() if name not in known}:
            cache.add(LATENCIES, machine(target), new)
