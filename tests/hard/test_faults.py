"""Disks, readers and places that fail on the way: one line, and nothing is left half done."""

import builtins
import errno
import io
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from helpers.cli import EXAMPLE, Call
from vitcompress.data.decoding import Pixels
from vitcompress.data.images import ImageSet
from vitcompress.export import folder
from vitcompress.place import writing

RECIPE = f"""{EXAMPLE}
stages:
  - {{name: quant, type: quantize, layers: ["blocks.0.mlp.*"], rounding: nearest, residual: 0}}
"""
SMALL = ("--limit", 16)
WRITES = 19  # at least as many as such a run opens files to write


class Disk:
    """Counts what is opened below `home` to be written to; from number `room` on it is full."""

    def __init__(self, home: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.room, self.count, self.open = str(home), room, 0, open
        self.save = folder.save_file
        monkeypatch.setattr(io, "open", self.opened)
        monkeypatch.setattr(builtins, "open", self.opened)
        monkeypatch.setattr(folder, "save_file", self.saved)

    def is_full(self, path: Any) -> bool:
        ours = isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.home)
        self.count += ours
        return ours and self.count >= self.room

    def opened(self, path: Any, mode: str = "r", *given: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+") or not self.is_full(path):
            return self.open(path, mode, *given, **options)
        if "+" in mode:  # /dev/full never ends
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        return self.open("/dev/full", mode, *given, **options)

    def saved(self, tensors: Any, path: Path) -> None:
        if self.is_full(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        self.save(tensors, path)


@pytest.fixture
def home(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the output, and for temporary files: nothing is left in it."""
    (home := tmp_path / "home").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    monkeypatch.setenv("VITCOMPRESS_CACHE", str(home / "cache"))
    yield home
    left = [path for path in home.rglob("*") if path.name.startswith((".", "vitcompress-", "tmp"))]
    assert left == []


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(room, marks=() if room in (1, 8) else pytest.mark.slow)
        for room in range(1, WRITES)
    ],
)
def test_a_disk_that_fills_up_ends_a_run_in_one_line(
    room: int, call: Call, recipe: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        disk = Disk(home, room, patch)
        code = 3 if room < WRITES - 1 else 0
        done = call("run", recipe, "--out", home / "out", *SMALL, code=code)
    if code == 0:
        assert disk.count < room, "there are more writes than WRITES"
        return
    assert "No space left on device" in done.error
    assert sum(line.startswith(("error: ", "failed: ")) for line in done.stderr.splitlines()) == 1
    assert not (home / "out").exists()


@pytest.mark.parametrize("first", [0, 9, 15])
def test_a_reader_that_fails_ends_a_run_in_one_line(
    first: int, call: Call, recipe: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, read = itertools.count(), ImageSet.read

    def failing(self: ImageSet, index: int) -> Pixels:
        if next(count) >= first:
            raise OSError(errno.EIO, "Input/output error")
        return read(self, index)

    monkeypatch.setattr(ImageSet, "read", failing)
    line = call("run", recipe, "--out", home / "out", *SMALL, code=2).error
    assert "images are unreadable" in line
    assert not (home / "out").exists()


def test_a_cache_that_cannot_be_written_to_costs_a_line_and_not_the_run(
    call: Call, recipe: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("VITCOMPRESS_CACHE", str(home / "file" / "cache"))
    done = call("run", recipe, "--out", home / "out", *SMALL, "--resume")
    assert done.stderr.count("results are not kept for later runs") == 1
    assert (home / "out" / "manifest.json").exists()


@pytest.mark.parametrize("command", ["run", "export"])
def test_a_second_run_into_one_folder_is_refused_before_the_work(
    command: str, call: Call, recipe: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcompress.pipeline.load_dense", lambda *_: pytest.fail("work was done"))
    what = recipe if command == "run" else "example:glyphs"
    judged = ("--evaluation", "example:glyphs/evaluation")
    with writing(home / "out"):
        line = call(command, what, *judged, "--out", home / "out", code=2).error
    assert "another run is writing there; wait for it" in line
