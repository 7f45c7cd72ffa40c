"""Latencies of schedules, from branches that take one unit a token and unit of size."""

from collections.abc import Callable
from typing import Any

import pytest

from vitcompress.measure import latencies
from vitcompress.measure.latencies import LatencyTable
from vitcompress.measure.tokens import schedule_latency
from vitcompress.model.architecture import VitModel, set_tail
from vitcompress.model.embedding import resize_embedding
from vitcompress.model.merging import Merging


@pytest.fixture(autouse=True)
def by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(parts: dict[str, Any], _: str) -> dict[str, float]:
        return {name: float(sum(map(int, name.split())) * p.size[0]) for name, p in parts.items()}

    monkeypatch.setattr(latencies, "_milliseconds", measured)
    monkeypatch.setattr(LatencyTable, "rest", lambda *_: 0.0)


@pytest.mark.parametrize("width", [64, 40])
def test_branches_of_any_size_and_count_of_tokens_are_told_apart(
    width: int, make_vit: Callable[..., VitModel]
) -> None:
    model = make_vit()
    if width < 64:
        resize_embedding(model.module, width)
    set_tail(model.module, 1)
    cost = schedule_latency(model, Merging(method="fisher", kept=(9, 9)), LatencyTable())
    attention = 2 * 32  # query-key and value dimensions of a head
    for kept in (17, 12, 3, 1):
        assert cost.block(0, 17, kept) == pytest.approx(17 * attention + kept * 256)
        assert cost.block(1, kept, kept) == pytest.approx(kept * attention + 256)
