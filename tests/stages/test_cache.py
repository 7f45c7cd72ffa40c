"""Entries come back as they were, or not at all; trouble with files stops no run."""

import json
import os
import random
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

import vitcompress
from vitcompress.stages import calibrate
from vitcompress.stages.cache import (
    LATENCIES,
    Cache,
    ResultKind,
    entry_name,
    latencies,
    tensors,
    values,
)
from vitcompress.stages.merge import judging, search
from vitcompress.stages.merge.scheduling import Found
from vitcompress.stages.recover import training

STATISTICS = tensors("statistics", 1)
SCHEDULE = values("schedule", 2)
FOUND = {"a": torch.arange(6.0).view(2, 3).mT, "b": torch.ones((), dtype=torch.float64)}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", resume=True)


def same(found: Mapping[str, Tensor] | None) -> bool:
    return found is not None and all(torch.equal(found[key], FOUND[key]) for key in FOUND)


def test_what_was_kept_comes_back(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache.get(STATISTICS, ["a model", 3]) is None
    assert capsys.readouterr().err == ""
    cache.put(STATISTICS, ["a model", 3], FOUND)
    cache.put(SCHEDULE, {"seed": 0, "images": "x"}, {"kept": [3, 2], "kl": 0.1})
    assert same(cache.get(STATISTICS, ["a model", 3]))
    assert cache.get(SCHEDULE, {"images": "x", "seed": 0}) == {"kept": [3, 2], "kl": 0.1}
    assert capsys.readouterr().err.count("reused") == 2
    assert cache.get(STATISTICS, ["a model", 4]) is None
    assert cache.get(tensors("statistics", 2), ["a model", 3]) is None
    assert Cache(cache.folder, resume=False).get(STATISTICS, ["a model", 3]) is None


def test_what_was_damaged_is_not_used(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    kinds: list[tuple[ResultKind[dict[str, object]], str]] = [(SCHEDULE, "one"), (SCHEDULE, "two")]
    for kind, identity in kinds:
        cache.put(kind, identity, {"kept": [3, 2]})
    file, other = (cache.folder / entry_name(kind, identity) for kind, identity in kinds)
    whole = file.read_bytes()
    damaged = [whole[:k] for k in (0, 10, 64, len(whole) - 1)] + [whole + b" ", other.read_bytes()]
    flips = range(0, len(whole), 7)
    damaged += [whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :] for k in flips]
    for content in damaged:
        file.write_bytes(content)
        assert cache.get(SCHEDULE, "one") is None
        said = capsys.readouterr().err
        assert said.replace("\n", " ").count("is damaged") == 1
    cache.put(SCHEDULE, "one", {"kept": [1]})
    assert cache.get(SCHEDULE, "one") == {"kept": [1]}
    file.unlink()
    file.mkdir()
    assert cache.get(SCHEDULE, "one") is None
    assert "not used" in capsys.readouterr().err.replace("\n", " ")


KEPT: dict[str, tuple[ResultKind[Any], Any]] = {
    "calibration": (calibrate._CALIBRATION, FOUND),
    "readers": (judging._READERS, FOUND),
    "schedule": (search._SCHEDULE, Found(kept=(3, 2), facts={"kl": 0.1})),
    "training": (training._TRAINING, {"step": 3, "mean": dict(FOUND)}),
    "latency": (LATENCIES, {"a": [1.0, 2.0]}),
}


@pytest.mark.parametrize("name", KEPT)
def test_no_entry_that_was_damaged_is_used(
    name: str, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, value = KEPT[name]
    cache.put(kind, name, value)
    file = cache.folder / entry_name(kind, name)
    whole, chance = file.read_bytes(), random.Random(name)
    assert cache.get(kind, name) is not None
    capsys.readouterr()
    for case in range(200):
        if case % 4:
            flipped = bytearray(whole)
            flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        else:
            flipped = bytearray(whole[: chance.randrange(len(whole))])
        file.write_bytes(flipped)
        assert cache.get(kind, name) is None
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert said[0].endswith("is damaged and is not used")


def test_every_kind_of_entry_is_damaged_above() -> None:
    package = Path(vitcompress.__file__).parent
    made = re.compile(r"= (?:tensors|values|ResultKind(?:\[.*\])?)\(\s*\"(\w+)\"")
    found = (made.findall(file.read_text(encoding="utf-8")) for file in package.rglob("*.py"))
    assert {name for names in found for name in names} == set(KEPT)


def test_runs_share_no_unfinished_file(tmp_path: Path) -> None:
    caches = [Cache(tmp_path, resume=True) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            list(pool.map(lambda cache: cache.put(STATISTICS, "all", FOUND), caches))
            assert same(caches[0].get(STATISTICS, "all"))
    assert [file.name for file in tmp_path.iterdir()] == [entry_name(STATISTICS, "all")]


def test_the_few_newest_of_a_kind_stay(cache: Cache) -> None:
    cache.folder.mkdir()
    old = cache.folder / "schedule-0000.json"  # of an earlier version
    old.touch()
    os.utime(old, (0, 0))
    cache.put(STATISTICS, "other", FOUND)
    for number in range(6):
        cache.put(SCHEDULE, number, {})
        os.utime(cache.folder / entry_name(SCHEDULE, number), (number + 10**9, number + 10**9))
    cache.put(SCHEDULE, 6, {})
    assert [cache.get(SCHEDULE, number) for number in range(7)] == [None] * 3 + [{}] * 4
    assert same(cache.get(STATISTICS, "other"))
    assert len(list(cache.folder.iterdir())) == 5


def test_a_cache_that_cannot_be_written_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache", resume=True)
    for number in range(3):
        cache.put(SCHEDULE, number, {})
    cache.add(SCHEDULE, "latencies", {"a": [1.0]})
    assert capsys.readouterr().err.count("are not kept") == 1
    assert cache.get(SCHEDULE, 0) is None


def test_tensors_that_find_no_room_stop_nothing(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: no space left")

    monkeypatch.setattr("vitcompress.export.folder.save_file", full)
    cache.put(STATISTICS, "one", FOUND)
    assert "not kept for later runs: I/O error" in capsys.readouterr().err.replace("\n", " ")
    assert list(cache.folder.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    cache.put(SCHEDULE, "one", {"kept": [3]})
    monkeypatch.setattr(Path, "replace", full)
    cache.put(SCHEDULE, "one", {"kept": [4]})
    assert "not kept for later runs: no space left" in capsys.readouterr().err.replace("\n", " ")
    assert cache.get(SCHEDULE, "one") == {"kept": [3]}
    assert len(list(cache.folder.iterdir())) == 1


def test_latencies_are_added_never_lost(tmp_path: Path) -> None:
    def fill(resume: bool, **grids: list[float]) -> set[str]:
        with latencies(Cache(tmp_path, resume)) as table:
            before = set(table.grids)
            table.grids.update(grids)
        return before

    assert fill(True, a=[1.0]) == set()
    assert fill(True, b=[2.0]) == {"a"}
    assert fill(False, a=[3.0], c=[3.0]) == set()
    with latencies(Cache(tmp_path, resume=True)) as table:
        assert table.grids == {"a": [3.0], "b": [2.0], "c": [3.0]}
        fill(True, d=[4.0])  # by another run, in the meantime
        table.grids["e"] = [5.0]
    assert fill(True) == set("abcde")

    def interrupted() -> None:
        with latencies(Cache(tmp_path, resume=True)) as table:
            table.grids["f"] = [6.0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert fill(True) == set("abcdef")


def test_many_runs_add_at_once(tmp_path: Path) -> None:
    def add(number: int) -> None:
        Cache(tmp_path, resume=False).add(SCHEDULE, "all", {str(number): number})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    found = Cache(tmp_path, resume=True).get(SCHEDULE, "all")
    assert json.loads(json.dumps(found)) == {str(number): number for number in range(24)}
