"""What is wrong with a recipe, in one line: where it stands, which key, what it should be."""

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vitcompress.yamltext import Document, KeyPath, Override, dotted, step

# By the type of pydantic's error; the fields are those of its context, and the input.
_WORDS = {
    "missing": "is missing",
    "literal_error": "must be {expected}, not {input}",
    "greater_than": "must be more than {gt}, not {input}",
    "greater_than_equal": "must be at least {ge}, not {input}",
    "less_than": "must be less than {lt}, not {input}",
    "less_than_equal": "must be at most {le}, not {input}",
    "finite_number": "must be a finite number, not {input}",
    "string_too_short": "must not be empty",
    "too_short": "has {actual_length} values; the least is {min_length}",
    "too_long": "has {actual_length} values; the most is {max_length}",
    "union_tag_not_found": "is missing; use one of {types}",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false, not {input}"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number, not {input}"),
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float"), "must be a whole number, not {input}"
    ),
    "string_unicode": "is not UTF-8; rename the file, or link to it",
    "string_type": "must be text, not {input}; put it in quotes",
    "invalid-json-value": "must be text, a number, a list or keys with values, not {input}",
    "invalid_key": "a key must be text, not {input}; put it in quotes",
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list, not {input}"),
    **dict.fromkeys(
        ("dict_type", "model_type", "model_attributes_type"),
        "must be keys with values, not {input}",
    ),
}


@dataclass(frozen=True)
class _Fault:
    """One error, with the place in the recipe that it is about."""

    error: ErrorDetails
    place: KeyPath


def first_error(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    document: Document,
    path: str,
    overrides: Sequence[Override],
) -> str:
    """The first of the errors that `model` finds in `data`, in one line.

    `data` is what `document`, read from `path`, became by `overrides`. Errors of the file come
    first, by line. A version that cannot be read makes all others meaningless.
    """
    faults = {fault.place: fault for fault in (_fault(e, data) for e in error.errors())}
    faults = {place: fault for place, fault in faults.items() if not _follows(fault, faults)}
    if ("version",) in faults:
        faults = {("version",): faults[("version",)]}
    told = []
    for fault in faults.values():
        override = _origin(fault.place, document, overrides)
        key, what = dotted(fault.place, data), _what(fault, model)
        if override is None:
            line = document.line(fault.place)[0]
            told.append((line, f"{path}:{line}: {key}: {what}"))
        else:
            inner = f"{key}: " if fault.place != override.place else ""
            told.append((10**9, f"{override.where}: {inner}{what}"))
    first = min(told, key=lambda entry: entry[0])[1].replace("\n", " ")
    return first + (f" (and {len(told) - 1} more)" if len(told) > 1 else "")


def _fault(error: ErrorDetails, data: Any) -> _Fault:
    """Pydantic's location holds names of union members, which are no keys of the recipe."""
    place: list[str | int] = []
    for part in error["loc"]:
        inner = step(data, part)
        if inner is not None or (isinstance(data, dict) and part in data):
            place.append(part)
            data = inner
    if error["type"] == "invalid_key":
        place = place[:-1]  # the key is told as the input
    if error["type"] == "missing":
        place.append(error["loc"][-1])
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        place.append("type")
    return _Fault(error, (*place, *error.get("ctx", {}).get("at", ())))


def _follows(fault: _Fault, places: Iterable[KeyPath]) -> bool:
    """Whether a list counts as too short only because a value in it is wrong."""
    depth = len(fault.place)
    inside = (p for p in places if len(p) > depth and p[:depth] == fault.place)
    return fault.error["type"] == "too_short" and any(inside)


def _origin(place: KeyPath, document: Document, overrides: Sequence[Override]) -> Override | None:
    """The override that a fault at `place` comes from; None when it comes from the file."""
    in_file = document.line(place)[1]
    for override in reversed(overrides):
        inside = place[: len(override.place)] == override.place
        around = override.place[: len(place)] == place
        if inside or (around and not in_file):
            return override
    return None


def _what(fault: _Fault, model: type[BaseModel]) -> str:
    kind, context = fault.error["type"], fault.error.get("ctx", {})
    if fault.place == ("version",):
        return f"{_shown(fault.error['input'])} is a version this program cannot read; it reads 1"
    if kind == "extra_forbidden":
        return f"unknown key; {_suggestion(str(fault.place[-1]), _keys(model, fault.error['loc']))}"
    if kind == "union_tag_invalid":
        tags = context["expected_tags"].replace("'", "").split(", ")
        return f"unknown type; {_suggestion(context['tag'], tags)}"
    if kind in _WORDS:
        types = ", ".join(_tags(model, fault.error["loc"]))
        return _WORDS[kind].format(**context, types=types, input=_shown(fault.error["input"]))
    plain = fault.error["msg"].removeprefix("Value error, ")
    return plain.replace("Input should be", "must be")


def _suggestion(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _shown(value: object) -> str:
    """A value as YAML would spell it, shortened."""
    if value is None or isinstance(value, bool):
        return "empty" if value is None else str(value).lower()
    if isinstance(value, (dict, list, tuple)):
        return "keys with values" if isinstance(value, dict) else "a list"
    return reprlib.repr(value) if isinstance(value, str) else str(value)


def _keys(model: type[BaseModel], location: KeyPath) -> list[str]:
    """The keys that are known around the last part of `location`."""
    return [key for m in _models_at(model, location[:-1]) for key in m.model_fields]


def _tags(model: type[BaseModel], location: KeyPath) -> list[str]:
    """The types of stages, or of other tagged models, that may stand at `location`."""
    return [tag for m in _models_at(model, location) if (tag := _tag(m)) is not None]


def _models_at(model: type[BaseModel], location: KeyPath) -> list[type[BaseModel]]:
    """The models that may stand at `location`, from the types of the fields on the way."""
    models = [model]
    for part in location:
        tagged = [m for m in models if _tag(m) == part]
        fields = [m.model_fields[str(part)] for m in models if part in m.model_fields]
        if tagged:
            models = tagged
        elif isinstance(part, str) and fields:  # others name members of unions
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    return models


def _tag(model: type[BaseModel]) -> str | None:
    """The value of the field `type` by which pydantic tells this model from others."""
    return model.model_fields["type"].default if "type" in model.model_fields else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
