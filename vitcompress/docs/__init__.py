"""The documentation that comes with the package: pages in Markdown, and a reference of recipes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitcompress.errors import InputError
from vitcompress.recipe import json_schema

REFERENCE = "reference"
_ORDER = (
    *("inputs", "recipes", REFERENCE, "prune", "merge", "sparsify", "quantize", "recover"),
    *("search", "families", "export", "ci", "python", "processes", "reliability"),
    *("security", "results", "tried"),
)


def pages() -> dict[str, str]:
    """The names of all pages, in the order in which they may be read, and their titles."""
    return {name: page(name).partition("\n")[0].removeprefix("# ") for name in _ORDER}


def page(name: str) -> str:
    """The text of a page. Raises `InputError` for a name that is not there."""
    if name not in _ORDER:
        raise InputError(f"docs: there is no page {name!r}; give one of {', '.join(_ORDER)}")
    if name == REFERENCE:
        return "\n".join(_reference(json_schema())) + "\n"
    return Path(__file__).with_name(f"{name}.md").read_text(encoding="utf-8")


def _reference(schema: dict[str, Any]) -> Iterator[str]:
    """All keys of a recipe, with their types and defaults, by section and by stage."""
    yield "# Reference: every key of a recipe"
    yield from _section("", schema, schema)
    stages = schema["properties"]["stages"]["items"]["discriminator"]["mapping"]
    shown = set[str]()
    for key, field in schema["properties"].items():
        if "$ref" in field:
            yield from _with_inner(f"`{key}`", field["$ref"], schema, shown)
    for kind, ref in stages.items():
        yield from _with_inner(f"Stage `{kind}`", ref, schema, shown)


def _with_inner(title: str, ref: str, schema: dict[str, Any], shown: set[str]) -> Iterator[str]:
    """A section, and those that its keys are, each once."""
    found = schema["$defs"][ref.rpartition("/")[2]]
    yield from _section(title, found, schema)
    for inner in _refs(found):
        if inner not in shown:
            shown.add(inner)
            yield from _with_inner(inner.rpartition("/")[2], inner, schema, shown)


def _refs(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        if isinstance(ref := found.get("$ref"), str):
            yield ref
        for value in found.values():
            yield from _refs(value)
    elif isinstance(found, list):
        for value in found:
            yield from _refs(value)


def _section(title: str, found: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    yield from ("", f"## {title}", "") if title else ("",)
    yield from found.get("description", "").split("\n")
    yield from ("", "| key | what it may be | default |", "|---|---|---|")
    for key, field in found.get("properties", {}).items():
        section = "$ref" in field  # whose defaults are told there
        default = None if section else field.get("default")
        told = "" if default is None else f"`{json.dumps(default)}`"
        yield f"| `{key}` | {_kind(field)} | {told} |"


def _kind(field: dict[str, Any]) -> str:
    """What a value may be, in words."""
    for several in ("anyOf", "oneOf"):
        if several in field:
            kinds = (each for each in field[several] if each != {"type": "null"})
            return " or ".join(dict.fromkeys(map(_kind, kinds)))
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field:
        return " · ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {_kind(field['items'])}" if "items" in field else "list"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {_kind(inner)}" if isinstance(inner, dict) else "mapping"
    return " ".join([kind, *_bounds(field)])


def _bounds(field: dict[str, Any]) -> Iterator[str]:
    words = {
        "minimum": "≥ {}",
        "exclusiveMinimum": "> {}",
        "maximum": "≤ {}",
        "exclusiveMaximum": "< {}",
    }
    yield from (text.format(field[key]) for key, text in words.items() if key in field)
