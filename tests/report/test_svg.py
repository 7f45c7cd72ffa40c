"""Charts: what stands below the bars."""

import itertools

import pytest

from vitcompress.report import svg


@pytest.mark.parametrize("room", [280, 840])
@pytest.mark.parametrize("count", [1, 2, 12, 40, 300])
@pytest.mark.parametrize("ends", [("0", "11"), ("patch_embed", "head")])
def test_names_do_not_meet_and_the_ends_are_named(
    ends: tuple[str, str], count: int, room: int
) -> None:
    names = [ends[0], *map(str, range(count)), ends[1]]
    found = svg._fitting(names, room, ())
    assert {0, len(names) - 1} <= set(found)
    slot = room / len(names)
    edges = [
        ((i + 0.5) * slot - len(names[i]) * svg._LETTER / 2, len(names[i]) * svg._LETTER)
        for i in found
    ]
    for (left, width), (following, _) in itertools.pairwise(edges):
        assert left + width + 7 <= following
    more = svg._fitting(names, 3 * room, found)
    assert set(found) <= set(more)
