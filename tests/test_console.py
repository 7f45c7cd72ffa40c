"""What is printed is data: no markup, no control characters, and no stream that it breaks on."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table

from vitcompress.console import (
    console,
    drawn,
    keep,
    keeping,
    note,
    print_facts,
    print_json,
    say,
)
from vitcompress.errors import RunError
from vitcompress.lines import printable


@pytest.mark.parametrize("text", ["o[/x]", "[bold]x", ":smile:", "a🎉b é — ü"])
def test_text_is_printed_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text, "bold")
    print_facts({text: {"key": text}})
    table = Table(text)
    table.add_row(text)
    say(table)
    assert capsys.readouterr().err.count(text) == 5


def test_what_moves_the_cursor_or_is_no_text_is_spelt_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    strange = "a\x1b[2Jb\rc\x9bd\udce9\u2028"
    say(f"{strange}\nnext")
    assert capsys.readouterr().err == f"{printable(strange)}\nnext\n"
    assert printable(strange) == r"a\x1b[2Jb\rc\x9bd\udce9\u2028"
    assert printable("é 🎉") == "é 🎉"


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
@pytest.mark.parametrize("text", ["é – 🎉", "caf\udce9"])
def test_json_is_written_in_any_encoding(
    encoding: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding))
    print_json({"name": text})
    written = stream.getvalue().decode(encoding)
    assert json.loads(written) == {"name": text}
    assert ("🎉" in written) == (encoding == "utf-8" and "🎉" in text)


def test_json_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(RunError, match=r"stdout: No space left .* not complete"):
            print_json({})


def test_who_stops_reading_messages_does_not_stop_the_work() -> None:
    code = (
        "from vitcompress.console import say\nfor _ in range(9): say('x' * 9999)\nprint('finished')"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stdout) == (0, "finished\n")


TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"


def test_without_a_terminal_notes_have_the_time_and_nothing_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", None)
    table = Table("long " * 100)
    table.add_row("cell " * 100)
    note("word " * 100)
    say("word " * 100)
    say(table)
    first, second, *drawn = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"{TIME} (word ){{100}}", first)
    assert second == "word " * 100
    assert len(drawn) == 5  # a head and a row between three rules
    assert drawn[3].count("cell") == 100


def test_details_are_shown_when_asked_for_and_kept_always(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with keeping(tmp_path / "run.log") as log:
        note("one\ntwo", "bold")
        note("a \x1b[2Jdetail", detail=True)
        monkeypatch.setattr(console, "verbose", True)
        note("another", detail=True)
        keep("a summary")
        log.close()
        note("after")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert all(re.match(f"{TIME} ", line) for line in lines)
    told = [line.split(maxsplit=2)[2] for line in lines]
    assert told == ["one", "two", r"a \x1b[2Jdetail", "another", "a summary"]
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(maxsplit=2)[2] for line in shown] == ["one", "two", "another", "after"]


def test_on_a_terminal_notes_are_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_force_terminal", True)
    note("as it is")
    assert capsys.readouterr().err.strip() == "as it is"


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """No line is broken."""
    width, console.width = console.width, 200
    yield
    console.width = width


def test_in_a_notebook_notes_stand_as_they_are_and_nothing_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = list[str]()
    monkeypatch.setattr("rich.jupyter.display", lambda _, text: shown.append(text))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(console, "is_jupyter", True)
    note("baseline", "bold")
    assert drawn("a table") == "a table"
    (only,) = shown
    assert "baseline" in only
    assert not re.search(r"\d{4}-\d\d", only)
