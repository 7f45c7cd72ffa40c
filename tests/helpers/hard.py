"""Things that somebody might give in the place of others, drawn from a seeded generator."""

import faulthandler
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from typer.testing import CliRunner

from vitcompress.cli import app
from vitcompress.errors import InputError
from vitcompress.lines import one_line, printable

CASES, MANY = 300, 10_000  # of all kinds of input together: by default, and besides with -m slow
SECONDS, BYTES = 10, 1 << 30  # that a case may take, and that it may hold at most
LONGEST = 2_000  # characters of a message
_STUCK = 300  # seconds of waiting, or of code that no signal interrupts: the process is ended


class TooLong(BaseException):
    """A case goes on. No `Exception`, as those that readers raise are told of as bad input."""


def counted(percent: int) -> pytest.MarkDecorator:
    """Gives a test the argument `rows`, the seeds of so many of all cases."""
    return seeds(CASES * percent // 100, MANY * percent // 100)


def seeds(few: int, many: int) -> pytest.MarkDecorator:
    """Gives a test the argument `rows`: `few` by default, and `many` others with -m slow."""
    return pytest.mark.parametrize(
        "rows",
        [
            pytest.param(range(few), id=f"{few}"),
            pytest.param(range(few, few + many), id=f"{many}", marks=pytest.mark.slow),
        ],
    )


def each(
    rows: range, what: str, case: Callable[[random.Random], object], seconds: float = SECONDS
) -> None:
    """Try `case` with a generator for each of the seeds `rows`; each gives the same case again.

    No case takes more than so many `seconds` of processor time, or lets the process hold `BYTES`
    more than before the first. All are tried; those that fail are told by their seeds.
    """
    most = resident() + BYTES
    failed = dict[int, str]()
    for seed in rows:
        try:
            with _in_time(seconds):
                case(random.Random(f"{what} {seed}"))
        except (Exception, TooLong) as error:
            failed[seed] = f"{type(error).__name__}: {one_line(error)}"
        if (held := resident()) > most:
            failed[seed] = f"holds {held / 1e9:.2f} GB, and {(most - BYTES) / 1e9:.2f} before"
    assert not failed, f"{len(failed)} of {len(rows)} {what}: {dict(list(failed.items())[:20])}"


def resident() -> int:
    """The most bytes in memory since the last call; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    (told,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")  # starts anew
    return 1024 * int(told.split()[1])


@contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    def ring(_: int, frame: FrameType | None) -> None:
        place = "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        raise TooLong(f"more than {seconds} s, at {place}")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(_STUCK, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def outcome(call: Callable[[], object]) -> str | None:
    """What `call` is refused for, on one line; None where it is not."""
    try:
        call()
    except InputError as error:
        told = str(error)
        assert told
        assert told == printable(told)
        assert len(told) < LONGEST, told
        return told
    return None


def command(*arguments: object) -> None:
    """A command ends well, or is refused in one line."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    told = result.stderr.strip()
    assert result.exit_code in (0, 2), told or repr(result.exception)
    if result.exit_code == 2:
        assert told.startswith("error: "), told
        assert told == printable(told)


ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**64,
    -(10**30),
    10**400,
    0.0,
    -0.0,
    1e-30,
    1e30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "[/x]",
    "a\nb",
    "\x1b[31m",
    "\ud800",
    "nul\0l",
    "é" * 300,
    "../" * 50,
    "/dev/zero",
    "timm:",
    "example:",
    "example:glyphs/",
    [],
    [[]],
    [None],
    [0, -1],
    [1e30] * 3,
    {},
    {"": ""},
    {"a": {"b": {"c": []}}},
    {1: 2},
    {None: None},
    b"bytes",
    {"type": "quantize"},
    {"name": 1, "type": []},
)


def odd(chance: random.Random) -> Any:
    """Something that belongs nowhere."""
    return chance.choice(ODD_VALUES)


def mutated(value: Any, chance: random.Random) -> Any:
    """Plain data with one place in it changed, left out, doubled or put in the place of another."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        act = chance.random()
        if act < 0.75:
            return value | {key: mutated(value[key], chance)}
        if act < 0.82:
            return {k: v for k, v in value.items() if k != key}
        return value | {chance.choice([f"{key}s", key[:-1], 1, None, ""]): odd(chance)}
    if isinstance(value, list | tuple) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        act = chance.random()
        changed = [*value]
        if act < 0.8:
            changed[at] = mutated(value[at], chance)
        elif act < 0.9:
            changed.insert(at, changed[at])
        else:
            del changed[at]
        return changed
    if isinstance(value, bool | int | float) and abs(value) < 1e300 and chance.random() < 0.3:
        return chance.choice([-value, value * 10**6, value / 10**6, value + 0.5, [value], {}])
    return odd(chance)


def damaged(content: bytes, chance: random.Random, signs: bytes = bytes(range(256))) -> bytes:
    """`content` with a few bytes changed, taken out or put in, cut off, or repeated."""
    held = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(held) + 1)
        end = min(len(held), at + chance.choice((1, 1, 2, 8, 64)))
        put = bytes(chance.choice(signs) for _ in range(chance.choice((0, 1, 1, 2, 8))))
        act = chance.random()
        if act < 0.7:
            held[at:end] = put
        elif act < 0.8:
            held[at:at] = held[at:end] * chance.choice((2, 50))
        elif act < 0.9:
            del held[at:]
        else:
            other = chance.randrange(len(held) + 1)
            held[at:end] = held[other : other + end - at]
    return bytes(held)
