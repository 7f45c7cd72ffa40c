"""What people see: one console on stderr, and progress with the time left."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)

T = TypeVar("T")

_HEARTBEAT_SECONDS = 30.0


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield `items`, showing a bar on a terminal and a line every 30 seconds elsewhere."""
    if console.quiet:
        yield from items
    elif console.is_terminal:
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
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
