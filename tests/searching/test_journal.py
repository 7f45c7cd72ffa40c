"""The journal of a search: what was damaged is never believed."""

import random
from contextlib import suppress
from pathlib import Path

import pytest

from vitcompress.searching.trials import _Journal, _journal

LOGS = [{"op_code": n, "params": {"prune": n, "cost": 0.1 * n}, "name": "é"} for n in range(5)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    journal = _Journal(str(tmp_path / "study.journal"))
    journal.append_logs(LOGS[:2])
    journal.append_logs(LOGS[2:])
    return tmp_path / "study.journal"


def test_what_was_written_is_read(file: Path) -> None:
    assert list(_Journal(str(file)).read_logs(0)) == LOGS
    assert list(_Journal(str(file)).read_logs(3)) == LOGS[3:]


def test_a_flipped_bit_is_found(file: Path) -> None:
    whole, chance = file.read_bytes(), random.Random(0)
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        try:
            found = list(_Journal(str(file)).read_logs(0))
        except ValueError:
            continue
        assert found == LOGS[: len(found)]  # the end was cut off


def test_what_was_cut_off_is_missing(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        found = list(_Journal(str(file)).read_logs(0))
        assert found == LOGS[: whole[:length].count(b"\n")]


def test_a_line_that_was_cut_off_is_no_reason_to_lose_the_others(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])
    _journal(str(file)).append_logs(LOGS[4:])
    assert list(_journal(str(file)).read_logs(0)) == LOGS


@pytest.mark.parametrize("text", ["a file of somebody", "two lines\nof it"])
def test_what_is_no_journal_is_left_alone(text: str, file: Path) -> None:
    file.write_text(text)
    with suppress(ValueError):
        _journal(str(file))
    assert file.read_text() == text
