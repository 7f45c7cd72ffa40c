"""Text on one line: what anybody has named, and what libraries say of their errors."""

import re

# Control characters, and the halves of characters by which Python writes bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` on one line that any terminal and file takes: `caf\udce9` for the byte E9."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def shortened(text: str, most: int) -> str:
    """`text`, without its middle where it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[: most - half - 1]}…{text[-half:]}"


def one_line(error: BaseException) -> str:
    """What an exception of a library says, in a sentence or so."""
    told = error.strerror if isinstance(error, OSError) else None
    text = printable(" ".join((told or str(error)).split())) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:159]}…"
