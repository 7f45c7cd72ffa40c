"""What people see: one console on stderr, progress with the time left, and JSON on stdout.

Results and errors are said (`say`), the course of the work is noted (`note`): where nobody watches
a terminal or a notebook, notes begin with the time, and nothing is broken into lines.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from vitcompress.errors import RunError
from vitcompress.lines import printable
from vitcompress.report import format

T = TypeVar("T")

_HEARTBEAT_SECONDS = 30.0
_UNBROKEN = 10_000  # columns


class _Console(Console):
    """Takes what it prints as data: no markup and no emoji codes, and nothing moves the cursor.

    `verbose`: whether notes on details are shown. `kept`: a file that all notes go to.
    """

    verbose = False
    kept: TextIO | None = None

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        lines = "\n".join(printable(line) for line in text.split("\n"))
        return super().render_str(lines, **options)

    @property
    def options(self) -> ConsoleOptions:
        """Without a terminal as wide as it takes, unless a width was set."""
        known = super().options
        fixed = self.is_terminal or self._width is not None
        return known if fixed else replace(known, max_width=_UNBROKEN)

    def on_broken_pipe(self) -> None:
        """Go on in silence: that nobody reads any more is no reason to lose the work."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


console = _Console()


def say(what: Any, style: str = "") -> None:
    """Print text, on one line however long, or something that `rich` draws."""
    console.print(what, style=style, soft_wrap=isinstance(what, str), crop=console.is_terminal)


def note(text: str, style: str = "", detail: bool = False) -> None:
    """Say what the work is at; a `detail` is shown where that is asked for, and always kept."""
    lines = text.split("\n")
    keep(text)
    if detail and not console.verbose:
        return
    watched = console.is_terminal or console.is_jupyter
    say(text if watched else "\n".join(f"{_now()} {line}" for line in lines), style)


def keep(text: str) -> None:
    """Put `text`, each line with the time, where notes are kept now."""
    if console.kept is not None:
        console.kept.writelines(f"{_now()} {printable(line)}\n" for line in text.split("\n"))
        console.kept.flush()


@contextmanager
def keeping(file: Path | None) -> Iterator[ExitStack]:
    """Until the end, or until what is yielded is closed, notes go to `file` too (None: nowhere)."""
    with ExitStack() as kept:
        if file is not None:
            console.kept = kept.enter_context(file.open("w", encoding="utf-8"))
            kept.callback(setattr, console, "kept", None)
        yield kept


def drawn(what: RenderableType) -> str:
    """What `rich` draws, as plain text."""
    plain = Console(
        width=_UNBROKEN,
        color_system=None,
        markup=False,
        emoji=False,
        highlight=False,
        force_jupyter=False,  # or a notebook shows an empty output
    )
    with plain.capture() as captured:
        plain.print(what)
    return captured.get().rstrip()


def _now() -> str:
    return datetime.now().astimezone().isoformat(" ", "seconds")


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print keys and values, one a line; those inside others are indented."""
    for key, value in facts.items():
        if isinstance(value, dict):
            say(f"{indent}{key}", "bold")
            print_facts(value, indent + "  ")
        else:
            say(f"{indent}{key}: {format.value(value, key)}")


def print_json(data: Any) -> None:
    """Print JSON on stdout, in its own characters where the encoding of stdout has them.

    Raises `RunError` where stdout does not take all of it.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(data, indent=2)
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the end tries again
        raise RunError(f"stdout: {error.strerror}; the JSON is not complete") from error


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield `items`, showing a bar on terminals and in notebooks that have ipywidgets, which bars
    need there, and a line every 30 seconds elsewhere."""
    if console.quiet:
        yield from items
    elif console.is_terminal or (console.is_jupyter and find_spec("ipywidgets")):
        title = TextColumn("  {task.description}", markup=False)
        columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(description, total=total)
            for item in items:
                yield item
                progress.advance(task)
    else:
        start = beat = time.monotonic()
        for done, item in enumerate(items):
            now = time.monotonic()
            if done and now - beat >= _HEARTBEAT_SECONDS:
                left = (now - start) / done * (total - done)
                note(f"  {description}: {done} of {total}, about {format.roughly(left)} left")
                beat = now
            yield item
