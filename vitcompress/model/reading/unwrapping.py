"""Which of the mappings in a checkpoint holds the model."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from vitcompress.console import note
from vitcompress.errors import InputError
from vitcompress.model.reading.heads import HEADS, State

_DEPTH = 4
_AVERAGE = re.compile(r"(^|[_.])ema([_.]|$)")
_TEACHER = re.compile(r"(^|[_.])teacher$")
# What training keeps beside the model, and is none.
_ASIDE = re.compile(r"\w*(optim|sched|scaler|loss|criterion|callback|loops|metric|param_groups)\w*")


def unwrap(content: Any, key: str | None, place: str) -> State:
    """The tensors of the model in `content`, which a training script may have wrapped.

    `key`: where they are, as a dotted path of wrappers or a prefix of their own names. Without it,
    they are the only whole model that is there, or the moving average of it.

    Raises `InputError` where `key` leads nowhere, and where there are several models without it.
    """
    found = dict(_mappings(content))
    if key is not None:
        return _below(found, key, place)
    chosen = _chosen(found, place)
    others = {at: held for at, held in found.items() if at != chosen and _is_large(held)}
    held = found.get(chosen, {})
    parent, _, name = chosen.rpartition(".")
    joined = {
        at: others.pop(at)
        for at in [f"{parent}.{head}".lstrip(".") for head in HEADS]
        if chosen and at in others and not any(own.partition(".")[0] in HEADS for own in held)
    }
    if others:
        aside = ", ".join(_told(at) for at in others)
        note(f"{place}: the model is {_told(chosen)}; not taken: {aside} (model.key chooses)")
    parts = {name: held} | {at.rpartition(".")[2]: head for at, head in joined.items()}
    return _flat(parts) if joined else held


def _flat(parts: Mapping[str, State]) -> State:
    """The tensors of all `parts`, by dotted names; those of the part "" keep theirs."""
    return {
        f"{part}.{name}" if part else name: tensor
        for part, held in parts.items()
        for name, tensor in held.items()
    }


def _below(found: Mapping[str, State], key: str, place: str) -> State:
    below = {
        name.removeprefix(f"{key}."): tensor
        for name, tensor in _flat(found).items()
        if name.startswith(f"{key}.")
    }
    if not below:
        there = _listed(at for at, held in found.items() if _is_large(held))
        raise InputError(
            f"{place}: model.key {key!r} is nothing that holds tensors; there are {there or 'none'}"
        )
    return below


def _chosen(found: Mapping[str, State], place: str) -> str:
    """Where the model is; the top level where nothing is found."""
    # Every vision model has a stem of convolutions; heads, centres and statistics have none.
    whole = [at for at, held in found.items() if any(t.ndim > 3 for t in held.values())]
    whole = whole or [at for at, held in found.items() if _is_large(held)]
    if len(whole) < 2:
        return next(iter(whole or found), "")
    averages = [at for at in whole if _AVERAGE.search(at)]
    outlines = [_outline(found[at]) for at in whole]
    if len(averages) == 1 and all(outline == outlines[0] for outline in outlines):
        return averages[0]
    teacher = next((at for at in whole if _TEACHER.search(at)), None)
    usual = " (of DINO and the like, the one that is used)" if teacher else ""
    raise InputError(
        f"{place}: holds several models: {_listed(whole)};"
        f" choose one by model.key, as --set model.key={teacher or whole[-1]}{usual}"
    )


def _mappings(content: Any, depth: int = _DEPTH) -> Iterator[tuple[str, State]]:
    """All mappings that hold tensors by the dotted path to them, each of them once."""
    level, seen = [("", content)], set[int]()
    for _ in range(depth + 1):
        below: list[tuple[str, Any]] = []
        for at, inner in level:
            if not isinstance(inner, Mapping) or id(inner) in seen:
                continue
            seen.add(id(inner))
            named = {key: value for key, value in inner.items() if isinstance(key, str)}
            if held := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
                yield at, held
            below += [
                (f"{at}.{key}".lstrip("."), value)
                for key, value in named.items()
                if isinstance(value, Mapping) and not _ASIDE.fullmatch(key)
            ]
        level = below


def _outline(state: State) -> list[tuple[str, tuple[int, ...]]]:
    """What two states of one model have in common, whatever they were wrapped in."""
    return sorted((key.rpartition(".")[2], tuple(t.shape)) for key, t in state.items() if t.ndim)


def _is_large(state: State) -> bool:
    return any(tensor.ndim > 1 for tensor in state.values())


def _told(at: str) -> str:
    return at or "the top level"


def _listed(places: Iterable[str]) -> str:
    return ", ".join(map(_told, places))
