"""The latency table, on sizes that take no time."""

import json
from typing import Any

import pytest

from vitcompress.measure import latencies
from vitcompress.measure.latencies import LatencyTable
from vitcompress.model.anatomy import SiteTokens
from vitcompress.model.architecture import VitModel
from vitcompress.model.sizes import AttentionSizes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latencies, "_SECONDS", 0.0)
    monkeypatch.setattr(latencies, "_SHARES", (1.0,))


def sizes(query_key: int, value: int, heads: int = 2) -> AttentionSizes:
    return AttentionSizes(heads=heads, query_key=query_key, value=value)


def test_branches_are_run_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    table = LatencyTable()
    parts = [sizes(32, 32), sizes(8, 20)]
    places = [(SiteTokens(17, 1, 17), False), (SiteTokens(36, 25, 9), True)]

    def told(table: LatencyTable) -> list[float]:
        found = [
            table.attention(64, tokens, part, 64, windowed)
            for part in parts
            for tokens, windowed in places
        ]
        return found + [table.mlp(64, n, hidden, 64) for hidden in (256, 100) for n in (17,)]

    found = told(table)
    assert all(value > 0 for value in found)
    again = LatencyTable(json.loads(json.dumps(table.grids)))

    def measured(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(latencies, "_milliseconds", measured)
    assert told(again) == found


def test_a_target_of_older_operators_has_its_times_too() -> None:
    table = LatencyTable(target="portable")
    assert table.mlp(64, 17, 100, 64) > 0
    assert table.attention(64, SiteTokens(17, 17, 17), sizes(32, 32), 64, False) > 0


def test_between_measured_sizes_and_beyond_it_follows_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_size(graphs: dict[str, Any], *_: Any) -> dict[str, float]:
        return {name: float(sum(map(int, name.split()))) for name in graphs}

    monkeypatch.setattr(latencies, "_SHARES", (0.25, 1.0))
    monkeypatch.setattr(latencies, "_milliseconds", by_size)
    table = LatencyTable()
    assert table.mlp(64, 17, 200, 64) == pytest.approx(200)
    assert table.mlp(64, 17, 300, 64) == pytest.approx(300)
    whole = SiteTokens(17, 17, 17)
    assert table.attention(64, whole, sizes(10, 31), 64, False) == pytest.approx(41)


def test_the_rest_is_what_the_whole_takes_beside_its_branches(vit: VitModel) -> None:
    table = LatencyTable()
    assert 0 < table.rest(vit, 0.0) < 1000
    assert table.rest(vit, 1e6) == 0
