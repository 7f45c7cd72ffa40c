"""All that a user can be refused for, as they meet it: exit code 2, one line, nothing written."""

from pathlib import Path

import pytest

from helpers.cli import Call
from refusals.checkpoints import CHECKPOINTS
from refusals.foreign import FOREIGN
from refusals.looking import LOOKING
from refusals.making import Row
from refusals.runs import RUNS


def held(home: Path) -> dict[Path, bytes | None]:
    """What lies in the folder, at any depth."""
    files = {path for path in home.rglob("*") if path.is_file() and path.stat().st_size < 2**24}
    return {path: path.read_bytes() if path in files else None for path in home.rglob("*")}


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=name) for name, row in (CHECKPOINTS | RUNS | LOOKING | FOREIGN).items()],
)
def test_it_is_refused_in_one_line(
    row: Row, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    arguments = list(map(str, row.make(home)))
    before = held(tmp_path)
    monkeypatch.chdir(home)
    quiet = [] if arguments[0] in ("schema", "recipes", "models") else ["--quiet"]
    done = call(*arguments, *quiet, code=2)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert [words for words in row.words if words not in lines[0]] == [], lines[0]
    assert done.stdout == ""
    assert held(tmp_path) == before
