"""Things that somebody might give in the place of others, drawn from a seeded generator."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vitcompress.errors import InputError
from vitcompress.lines import printable

DEFAULT, MANY = 300, 10_000  # cases of one kind of input: by default, and with -m slow


def counted(cases: int, most: int = MANY) -> pytest.MarkDecorator:
    """Gives a test the argument `rows`, its seeds: `cases` by default, `most` with -m slow."""
    return pytest.mark.parametrize(
        "rows",
        [
            pytest.param(range(cases), id=f"{cases}"),
            pytest.param(range(cases, most), id=f"{most}", marks=pytest.mark.slow),
        ],
    )


def each(seeds: range, what: str) -> Iterator[random.Random]:
    """A generator for each of the seeds; a seed alone gives the same case again."""
    for seed in seeds:
        yield random.Random(f"{what} {seed}")


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


LONGEST = 2_000  # characters of a message

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
    if isinstance(value, bool | int | float) and chance.random() < 0.3:
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
