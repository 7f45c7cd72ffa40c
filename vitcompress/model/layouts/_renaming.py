"""Keys to keys: what all layouts have in common."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vitcompress.errors import InputError

Rules = Iterable[tuple[str, str]]
"""Patterns that whole keys match, and what they become, as `re.sub` has it."""

_SHOWN = 3
_QKV = ("query", "key", "value")


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


def all_known(tensors: Mapping[str, Tensor], rules: Rules) -> bool:
    """Whether each key is matched by one of `rules`."""
    known = re.compile("|".join(f"(?:{pattern})" for pattern, _ in rules))
    return all(map(known.fullmatch, tensors))


def joined(
    tensors: Mapping[str, Tensor], place: str, parts: tuple[str, ...] = _QKV, whole: str = "qkv"
) -> dict[str, Tensor]:
    """`tensors` with each `P.query.K`, `P.key.K` and `P.value.K` (the `parts`) as one `P.qkv.K`
    (the `whole`), in this order.

    A bias that only some of the parts have is zeros in the others. Raises `InputError` where a
    weight is missing.
    """
    pattern = re.compile(rf"\.({'|'.join(parts)})\.")
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not pattern.search(key):
            found[key] = tensor
            continue
        together = pattern.sub(f".{whole}.", key)
        if together in found:
            continue
        beside = [tensors.get(pattern.sub(f".{name}.", key)) for name in parts]
        if key.endswith(".weight") and any(part is None for part in beside):
            lacking = f"{key} lacks its {', '.join(parts[:-1])} or {parts[-1]}"
            raise InputError(f"{place}: {lacking}; give the whole model")
        found[together] = torch.cat([torch.zeros_like(tensor) if p is None else p for p in beside])
    return found


def needed(tensors: Mapping[str, Tensor], key: str, dims: int, place: str) -> Tensor:
    """`tensors[key]`, of so many dimensions. Raises `InputError` where it is not there."""
    tensor = tensors.get(key)
    if tensor is None or tensor.ndim != dims:
        found = "is missing" if tensor is None else f"has the shape {list(tensor.shape)}"
        raise InputError(f"{place}: {key} {found}; give the whole model")
    return tensor


def blocks_in(tensors: Mapping[str, Tensor], pattern: str = r"blocks\.(\d+)\.") -> int:
    """How many blocks there are, by the highest number that `pattern` finds at a key's start."""
    numbers = [int(match[1]) for key in tensors if (match := re.match(pattern, key))]
    return max(numbers, default=-1) + 1


def setting(
    config: Mapping[str, Any],
    key: str,
    kind: type,
    default: Any,
    place: str,
    file: str = "config.json",
) -> Any:
    """`config[key]`, of the type `kind`; `default` where it is not there. Raises `InputError`.

    `file`: what the description at `place` is called.
    """
    value = config.get(key)
    if value is None:
        return default
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind):
        raise InputError(f"{place}: {key} of its {file} is {value!r}; correct it there")
    return value
