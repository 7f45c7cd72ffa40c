"""The journal of a search: what was damaged is never believed."""

import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from vitcompress.searching.journal import Journal, journal

LOGS = [{"op_code": n, "params": {"prune": n, "cost": 0.1 * n}, "name": "é"} for n in range(5)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    begun = Journal(str(tmp_path / "study.journal"))
    begun.append_logs(LOGS[:2])
    begun.append_logs(LOGS[2:])
    return tmp_path / "study.journal"


def test_what_was_written_is_read(file: Path) -> None:
    assert list(Journal(str(file)).read_logs(0)) == LOGS
    assert list(Journal(str(file)).read_logs(3)) == LOGS[3:]


def test_a_flipped_bit_is_found(file: Path) -> None:
    whole, chance = file.read_bytes(), random.Random(0)
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        try:
            found = list(Journal(str(file)).read_logs(0))
        except ValueError:
            continue
        assert found == LOGS[: len(found)]  # the end was cut off


def test_what_was_cut_off_is_missing(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        found = list(Journal(str(file)).read_logs(0))
        assert found == LOGS[: whole[:length].count(b"\n")]


def test_a_line_that_was_cut_off_is_no_reason_to_lose_the_others(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])
    journal(str(file)).append_logs(LOGS[4:])
    assert list(journal(str(file)).read_logs(0)) == LOGS


@pytest.mark.parametrize("text", ["a file of somebody", "two lines\nof it"])
def test_what_is_no_journal_is_left_alone(text: str, file: Path) -> None:
    file.write_text(text)
    with suppress(ValueError):
        journal(str(file))
    assert file.read_text() == text


KILLED = """
import os, signal
from vitcompress.searching.journal import journal
found = journal("study.journal")
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
found.append_logs([{"op_code": 0}])
"""


def too_long(*_: object) -> None:
    raise TimeoutError


def test_what_is_killed_while_it_writes_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the journal is named from: a search is mostly told `--out NAME`."""
    monkeypatch.chdir(tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert killed.returncode == -signal.SIGKILL
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(10)
    try:
        journal("study.journal").append_logs([{"op_code": 1}])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    found = [log["op_code"] for log in Journal("study.journal").read_logs(0)]
    assert found in ([0, 1], [1])


def test_a_line_that_another_process_is_writing_is_left_to_it(file: Path) -> None:
    other, whole = Journal(str(file)), file.read_bytes()
    other.lock.acquire()
    file.write_bytes(whole[:-9])
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(journal, str(file))
        with pytest.raises(TimeoutError):
            opened.result(timeout=0.2)
        file.write_bytes(whole)
        other.lock.release()
        assert list(opened.result().read_logs(0)) == LOGS
