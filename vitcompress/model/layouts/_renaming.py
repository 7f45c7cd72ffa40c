"""Keys to keys: what all layouts have in common."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vitcompress.errors import InputError

Rules = Iterable[tuple[str, str]]
"""Patterns that whole keys match, and what they become, as `re.sub` has it."""

_SHOWN = 3
_PARTS = re.compile(r"\.(query|key|value)\.")


def renamed(
    tensors: Mapping[str, Tensor], rules: Rules, place: str, layout: str, dropped: str = r"$."
) -> dict[str, Tensor]:
    """`tensors` by the names that the first of `rules` that matches the whole key gives them.

    What matches `dropped` is left out. Raises `InputError` for keys that nothing matches.
    """
    compiled = [(re.compile(pattern), name) for pattern, name in rules]
    found, unknown = dict[str, Tensor](), list[str]()
    for key, tensor in tensors.items():
        matches = ((pattern.fullmatch(key), name) for pattern, name in compiled)
        if new := next((match.expand(name) for match, name in matches if match), None):
            found[new] = tensor
        elif not re.fullmatch(dropped, key):
            unknown.append(key)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise InputError(
            f"{place}: taken for the layout {layout}, which has no {', '.join(unknown[:_SHOWN])}"
            f"{more}; give a checkpoint without them, or one in timm's layout"
        )
    return found


def joined(tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """`tensors` with each `P.query.K`, `P.key.K` and `P.value.K` as one `P.qkv.K`, in this order.

    A bias that only some of the three have is zeros in the others. Raises `InputError` where a
    weight is missing.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not _PARTS.search(key):
            found[key] = tensor
            continue
        together = _PARTS.sub(".qkv.", key)
        if together in found:
            continue
        parts = [tensors.get(_PARTS.sub(f".{name}.", key)) for name in ("query", "key", "value")]
        if key.endswith(".weight") and any(part is None for part in parts):
            raise InputError(f"{place}: {key} lacks its query, key or value; give the whole model")
        found[together] = torch.cat([torch.zeros_like(tensor) if p is None else p for p in parts])
    return found


def needed(tensors: Mapping[str, Tensor], key: str, place: str) -> Tensor:
    """`tensors[key]`. Raises `InputError` where it is not there."""
    if key not in tensors:
        raise InputError(f"{place}: nothing in it stands for {key} of timm; give the whole model")
    return tensors[key]


def hidden_ratio(hidden: int, width: int) -> float:
    """`hidden` as a multiple of `width` that timm, which cuts products off, takes back to it."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def blocks_in(tensors: Mapping[str, Tensor], pattern: str = r"blocks\.(\d+)\.") -> int:
    """How many blocks there are, by the highest number that `pattern` finds at a key's start."""
    numbers = [int(match[1]) for key in tensors if (match := re.match(pattern, key))]
    return max(numbers, default=-1) + 1


def setting(config: Mapping[str, Any], key: str, kind: type, default: Any, place: str) -> Any:
    """`config[key]`, of the type `kind`; `default` where it is not there. Raises `InputError`."""
    value = config.get(key)
    if value is None:
        return default
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind):
        raise InputError(f"{place}: {key} of its config.json is {value!r}; correct it there")
    return value
