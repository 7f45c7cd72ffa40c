"""Temporary folders go with their process, in whatever way that ends."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from vitcompress import claims
from vitcompress.claims import claimed, scratch
from vitcompress.errors import InputError
from vitcompress.place import writing

LEFT = """
import os, signal, sys
from pathlib import Path
from vitcompress.claims import scratch
with scratch(Path(sys.argv[1])) as folder:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_temporary_folder_goes_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with suppress(KeyboardInterrupt), scratch() as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "moment"),
    [
        *((scratch, moment) for moment in range(3)),
        *((lambda home: writing(home / "new" / "out"), moment) for moment in range(4)),
    ],
)
def test_what_goes_in_the_end_goes_where_that_is_interrupted(
    place: Callable[[Path], AbstractContextManager[Path]],
    moment: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removals = count()

    def interrupted(remove: Callable[..., None]) -> Callable[..., None]:
        def removing(*given: Any, **options: Any) -> None:
            if next(removals) == moment:
                raise KeyboardInterrupt
            remove(*given, **options)

        return removing

    def fail(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").touch()
        for name in ("unlink", "rmdir"):
            monkeypatch.setattr(os, name, interrupted(getattr(os, name)))
        raise ValueError

    with pytest.raises(KeyboardInterrupt), place(tmp_path) as folder:
        fail(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    (tmp_path / "vitcompress-of-somebody").mkdir()
    with scratch(tmp_path) as used:
        killed = subprocess.run([sys.executable, "-c", LEFT, str(tmp_path)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 3
        claims._clear.cache_clear()  # as a new process
        with scratch(tmp_path) as other:
            names = {used.name, other.name, "vitcompress-of-somebody"}
            assert {path.name for path in tmp_path.iterdir()} == names


def test_without_locks_what_is_old_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_lock", lambda _: None)
    with scratch(tmp_path) as old, scratch(tmp_path) as new:
        os.utime(old, (0, 0))
        claims._clear.cache_clear()  # as a new process
        with scratch(tmp_path) as last:
            assert set(tmp_path.iterdir()) == {new, last}
        with pytest.raises(InputError, match="of a run that goes on or was killed"), claimed(new):
            pass


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    with scratch(tmp_path) as folder:
        name = folder.name
    (tmp_path / "precious").mkdir()
    (tmp_path / name).symlink_to("precious")
    claims._clear.cache_clear()  # as a new process
    with scratch(tmp_path):
        assert (tmp_path / "precious").is_dir()


def test_a_new_folder_that_another_process_takes_for_an_old_one_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, tried = claims._lock, list[Path]()

    def taken_at_first(folder: Path) -> int | None:
        tried.append(folder)
        if len(tried) < 3:
            raise (BlockingIOError, FileNotFoundError)[len(tried) - 1]
        return lock(folder)

    monkeypatch.setattr(claims, "_lock", taken_at_first)
    with scratch(tmp_path) as folder:
        assert folder == tried[2]
        assert len(set(tried)) == 3


def test_an_interruption_as_a_folder_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def interrupted(self: Path, *given: Any, **options: Any) -> None:
        make(self, *given, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), scratch(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
