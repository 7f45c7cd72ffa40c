"""Patterns that select layers by name."""

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from vitcompress.errors import InputError


def match(
    patterns: Iterable[str],
    names: Sequence[str],
    key: str,
    quantized: Collection[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """The `names` that any pattern selects, in their order.

    A pattern is a shell pattern (`blocks.*.mlp.fc1`), a regular expression for the whole name after
    `re:`, or the name of one of the `groups`, for all names in it, if there are any. Raises
    `InputError` naming `key` for a pattern that selects nothing; where it would select layers that
    are `quantized` already, the message says so.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        if groups is not None and pattern in groups:
            chosen.update(groups[pattern])
            continue
        is_regex = pattern.startswith("re:")
        try:
            test = re.compile(pattern[3:] if is_regex else fnmatch.translate(pattern))
        except re.error as error:
            raise InputError(f"{key}: {pattern!r} is no regular expression: {error}") from error
        found = [name for name in names if test.fullmatch(name)]
        if not found and any(test.fullmatch(name) for name in quantized):
            raise InputError(
                f"{key}: the layers of {pattern!r} are quantized already; name others, or put the "
                "stage before the one that quantizes"
            )
        if not found:
            near = difflib.get_close_matches(pattern, names, 3, 0.0)
            raise InputError(f"{key}: {pattern!r} matches no layer; nearest: {', '.join(near)}")
        chosen.update(found)
    return [name for name in names if name in chosen]
