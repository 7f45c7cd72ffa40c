"""Commands, each in a process of its own, that a signal ends at a moment counted in events.

Events are what a process does with files in its folder, its steps, and its messages: the same on
every machine. Run as a script, this is a server: it has imported everything, and forks a process
for each command that it reads.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

_FILES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate")


class Ended(NamedTuple):
    """How a command has ended. `code`: its exit code, −9 for SIGKILL; `events`: how many it had
    (0: killed); `seconds`: of the processor; `told`: stdout and stderr."""

    code: int
    events: int
    seconds: float
    told: str


class Commands:
    """The other end of a server."""

    def __init__(self, server: "subprocess.Popen[str]") -> None:
        self.server = server

    def __call__(self, home: Path, *arguments: object, moment: int = 0, by: int = 0) -> Ended:
        """The command in the folder `home`, whose event number `moment` ends it with the signal
        `by`. What it keeps for later lies in `cache`, and what is temporary in `temporary`."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        asked = {"home": str(home), "arguments": [*map(str, arguments)], "moment": moment, "by": by}
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        return Ended(*json.loads(self.server.stdout.readline()))


@contextmanager
def commands(memo: Path) -> Iterator[Commands]:
    """`memo`: a folder for what was exported once."""
    command = [sys.executable, "-m", "helpers.ending", str(memo)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    places = [str(Path(__file__).parent.parent), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as server:  # type: ignore[call-overload]
        yield Commands(server)
        server.stdin.close()


def _serve(memo: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    _prepare(memo)
    for line in sys.stdin:
        asked = json.loads(line)
        home = Path(asked["home"])
        told, counted = home.with_name(f"{home.name}.told"), home.with_name(f"{home.name}.events")
        counted.write_text("0")
        if (process := os.fork()) == 0:
            _carry_out(home, asked["arguments"], asked["moment"], asked["by"], told, counted)
        _, status, used = os.wait4(process, 0)
        seconds = used.ru_utime + used.ru_stime
        text = told.read_text(errors="replace")
        code = os.waitstatus_to_exitcode(status)
        answers.write(json.dumps([code, int(counted.read_text()), seconds, text]) + "\n")
        answers.flush()


def _carry_out(
    home: Path, arguments: list[str], moment: int, by: int, told: Path, counted: Path
) -> None:
    """Be the process of one command, to its end."""
    from vitcompress import cli

    os.chdir(home)
    (home / "temporary").mkdir(exist_ok=True)
    tempfile.tempdir = str(home / "temporary")
    os.environ["VITCOMPRESS_CACHE"] = str(home / "cache")
    sys.argv = ["vitcompress", *arguments]
    output = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    events = _counting(home, moment, by)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the test was started by
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
    code = 1
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    total = str(events[0])
    counted.write_text(total)
    os._exit(code)


def _counting(home: Path, moment: int, by: int) -> list[int]:
    """Count events from now on, and send the signal `by` at the `moment` (0: never)."""
    from vitcompress.console import console
    from vitcompress.stages.context import Context

    events, here = [0], f"{home}{os.sep}"

    def happened() -> None:
        events[0] += 1
        if events[0] == moment:
            os.kill(os.getpid(), by)

    def hook(name: str, given: tuple[Any, ...]) -> None:
        if name == "open":
            ours = isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            ours = name in _FILES
        path = given[0] if ours else None
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if path.startswith(here) or (path and not path.startswith(os.sep)):
            happened()

    track, show = Context.track, console.print

    def steps(*given: Any) -> Iterator[Any]:
        for item in track(*given):
            happened()
            yield item

    def message(*given: Any, **options: Any) -> None:
        happened()
        show(*given, **options)

    Context.track = steps  # type: ignore[method-assign]
    console.print = message  # type: ignore[method-assign]
    sys.addaudithook(hook)
    return events


def _prepare(memo: Path) -> None:
    """Import everything, and do once what is the same in each process."""
    import torch

    from helpers import operators
    from helpers.exporting import exported_once
    from vitcompress import pipeline
    from vitcompress.data.sources import list_source
    from vitcompress.example import glyphs
    from vitcompress.measure.runtime import time_in_turns
    from vitcompress.searching import candidates, search
    from vitcompress.stages.recover import training

    assert search
    torch.set_num_threads(1)
    operators.find_once()
    glyphs.draw = cache(glyphs.draw)
    for split in ("calibration", "evaluation"):
        list_source(f"example:glyphs/{split}")  # which draws the images
    training._SAVED_EVERY = 0.0
    for room in (pipeline, candidates):
        vars(room)["time_in_turns"] = partial(time_in_turns, seconds=0, runs=3)
        vars(room)["export_onnx"] = partial(exported_once, memo)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
