"""What people see: one console on stderr, progress with the time left, and JSON on stdout."""

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from vitcompress.errors import RunError
from vitcompress.report import format

T = TypeVar("T")

_HEARTBEAT_SECONDS = 30.0
# Control characters, and the halves of characters by which Python writes bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` on one line that any terminal and file takes: `caf\udce9` for the byte E9."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


class _Console(Console):
    """Takes what it prints as data: no markup and no emoji codes, and nothing moves the cursor."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        lines = "\n".join(printable(line) for line in text.split("\n"))
        return super().render_str(lines, **options)

    def on_broken_pipe(self) -> None:
        """Go on in silence: that nobody reads any more is no reason to lose the work."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


console = _Console()


def say(what: Any, style: str = "") -> None:
    """Print text, on one line however long, or something that `rich` draws."""
    console.print(what, style=style, soft_wrap=isinstance(what, str))


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
    """Yield `items`, showing a bar on a terminal and a line every 30 seconds elsewhere."""
    if console.quiet:
        yield from items
    elif console.is_terminal:
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
                console.print(f"  {description}: {done} of {total}, about {left:.0f} s left")
                beat = now
            yield item
