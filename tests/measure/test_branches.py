"""The latency table, on sizes that take no time."""

from pathlib import Path
from typing import Any

import pytest

from vitcompress.measure import branches
from vitcompress.measure.branches import LatencyTable
from vitcompress.model.architecture import VitModel
from vitcompress.model.sizes import AttentionSizes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "_SECONDS", 0.0)


def sizes(query_key: int, value: int, heads: int = 2) -> AttentionSizes:
    return AttentionSizes(heads=heads, query_key=query_key, value=value)


def test_branches_are_run_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = LatencyTable()
    parts: list[Any] = [sizes(32, 32), sizes(8, 20), 256, 100]
    found = [table.branch(64, 17, leaving, part) for part in parts for leaving in (17, 1)]
    assert all(value > 0 for value in found)
    assert table.branch(64, 17, 17, None) == 0
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")

    def measured(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(branches, "_milliseconds", measured)
    assert [again.branch(64, 17, t, part) for part in parts for t in (17, 1)] == found


def test_between_measured_sizes_and_beyond_it_follows_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_size(graphs: dict[str, Any], *_: Any) -> dict[str, float]:
        return {name: float(sum(map(int, name.split()))) for name in graphs}

    monkeypatch.setattr(branches, "_milliseconds", by_size)
    table = LatencyTable()
    assert table.branch(64, 17, 17, 200) == pytest.approx(200)
    assert table.branch(64, 17, 17, 300) == pytest.approx(300)
    assert table.branch(64, 17, 17, sizes(10, 31)) == pytest.approx(41)


def test_the_rest_is_what_the_whole_takes_beside_its_branches(vit: VitModel) -> None:
    table = LatencyTable()
    assert 0 < table.rest(vit, 0.0) < 1000
    assert table.rest(vit, 1e6) == 0
