"""YAML text as plain data that remembers its lines, and values that are set over it."""

import re
import reprlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.constructor import ConstructorError

from vitcompress.errors import InputError
from vitcompress.foreign import text_of

KeyPath = tuple[str | int, ...]
"""The way to a value: keys of mappings and indices of lists."""


_FLOAT = "tag:yaml.org,2002:float"
_BYTES = "tag:yaml.org,2002:binary"
_NUMBERS = {"tag:yaml.org,2002:int", _FLOAT}
_INTEGERS = 2**64
_MOST_VALUES = 100_000
_MOST_BYTES = 256 << 10  # YAML takes long to read
_POWER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class _Numbers:
    """Knows numbers as YAML 1.2 does: none to the base of 60 (`2:4` is text and not 124), and those
    with a power of ten and no point (`1e-3` is 0.001 and not text)."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = cast(Any, super()).resolve(kind, value, implicit)
        if kind is yaml.ScalarNode and implicit[0] and _POWER.fullmatch(value):
            return _FLOAT
        return yaml.SafeLoader.DEFAULT_SCALAR_TAG if tag in _NUMBERS and ":" in value else tag


class _Loader(_Numbers, yaml.SafeLoader):
    """Reads plain data; bytes, which no schema has, are none."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """What `node` stands for. Raises `ConstructorError` where that is nothing of its tag, for
        which constructors raise almost anything, and for an integer that others cannot hold."""
        try:
            made = super().construct_object(node, deep)
            if isinstance(made, int) and abs(made) >= _INTEGERS:
                raise OverflowError(made.bit_length())
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:
            large = ", which has at most 64 bits" if isinstance(error, OverflowError) else ""
            kind = node.tag.rpartition(":")[2]
            why = f"{reprlib.repr(node.value)} is no {kind}{large}"
            raise ConstructorError(None, None, why, node.start_mark) from error
        return made


_PLAIN = yaml.SafeLoader.yaml_constructors
_Loader.yaml_constructors = {tag: make for tag, make in _PLAIN.items() if tag != _BYTES}


class _Dumper(_Numbers, yaml.SafeDumper):
    """Writes plain data, text that looks like a number in quotes."""


def dump(data: object) -> str:
    """Plain data as YAML that `parse_yaml` reads again; keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Document:
    """What the text holds, and where in it."""

    data: Any
    node: yaml.Node | None

    def line(self, place: KeyPath) -> tuple[int, bool]:
        """The line of `place` or of the nearest thing around it, and whether it is there itself."""
        node, line = self.node, 1
        for part in place:
            found = next((pair for key, *pair in _children(node) if key == part), None)
            if found is None:
                return line, False
            mark, node = found
            line = mark.start_mark.line + 1
        return line, True


def read_yaml(file: Path) -> Document:
    """What `file` holds, whose messages begin with its line. Raises `InputError`."""
    text = text_of(file, "a recipe is a YAML file", _MOST_BYTES)
    return parse_yaml(text, lambda line: f"{file}:{line}")


def parse_yaml(text: str, where: Callable[[int], str]) -> Document:
    """Read `text` as YAML does it without tags that build objects.

    `where(line)` begins the message of the `InputError` that is raised for text that is not YAML,
    for a second document and for a key that is given twice.
    """
    loader = _Loader("")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if _values(node, {}) > _MOST_VALUES:
            raise InputError(f"{where(1)}: its anchors stand for too many values; write it out")
        repeated = None if node is None else next(_repeated(node, (), set()), None)
        # Deep construction refuses anchors that contain themselves.
        data = None if node is None else loader.construct_object(node, deep=True)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or "it cannot be read"
        if problem.startswith("but "):  # the second half of a sentence
            problem = f"{error.context}, {problem}"
        raise InputError(f"{where(mark.line + 1 if mark else 1)}: not YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{where(line)}: not YAML: it contains a control character") from None
    except RecursionError:
        raise InputError(f"{where(1)}: not YAML: nested too deeply") from None
    finally:
        loader.dispose()
    if repeated:
        place, first, second = repeated
        raise InputError(f"{where(second)}: {dotted(place, data)}: given before, in line {first}")
    return Document(data, node)


def dotted(place: KeyPath, data: Any) -> str:
    """`stages.quant.bits`: a list item is called by its `name`, its `type` or its number from 1."""
    parts = []
    for part in place:
        held = step(data, part)
        name = (held.get("name") or held.get("type")) if isinstance(held, dict) else None
        if isinstance(part, int) and not isinstance(data, dict):
            parts.append(name if isinstance(name, str) else str(part + 1))
        else:
            parts.append(str(part))
        data = held
    return ".".join(parts)


def step(data: Any, part: str | int) -> Any:
    """What `data` holds at a key or an index; None where it holds nothing there."""
    if isinstance(data, dict):
        return data.get(part)
    inside = isinstance(data, list) and isinstance(part, int) and part < len(data)
    return data[part] if inside else None


@dataclass(frozen=True)
class Override:
    """A value set over those of the text; `where` is how messages call it."""

    where: str
    place: KeyPath
    value: Any


def read_override(text: str, data: dict[Any, Any]) -> Override:
    """Read `dotted.key=value`, meant for `data`; a stage is addressed as `dotted` calls it.

    Raises `InputError` for text of another form and for a stage that `data` does not have.
    """
    key, equals, value = text.partition("=")
    where = f"--set {text}"
    if not equals or "" in key.strip().split("."):
        raise InputError(f"{where}: write KEY=VALUE, such as data.images=64")
    return override(where, key.strip(), parse_yaml(value, lambda _: where).data, data)


def override(where: str, key: str, value: object, data: dict[Any, Any]) -> Override:
    """`value` at the dotted `key` of `data`; raises `InputError` for a stage that is not there."""
    place: list[str | int] = [*key.split(".")]
    if place[0] == "stages" and len(place) > 1:
        place[1] = _stage_index(str(place[1]), data, where)
    return Override(where, tuple(place), value)


def replaced(data: Any, override: Override, depth: int = 0) -> Any:
    """`data` with the value of `override` at its place; mappings on the way come into being.

    Raises `InputError` where a value on the way is no mapping.
    """
    if depth == len(override.place):
        return override.value
    part = override.place[depth]
    if isinstance(part, int):
        changed = replaced(data[part], override, depth + 1)
        return [*data[:part], changed, *data[part + 1 :]]
    if data is None or isinstance(data, dict):
        held = data or {}
        return held | {part: replaced(held.get(part), override, depth + 1)}
    parent = override.place[depth - 1]
    raise InputError(f"{override.where}: {parent} has no keys of its own; set it as a whole")


def _stage_index(name: str, data: dict[Any, Any], where: str) -> int:
    stages = data.get("stages")
    count = len(stages) if isinstance(stages, list) else 0
    names = [dotted(("stages", index), data).partition(".")[2] for index in range(count)]
    if name in names:
        return names.index(name)
    there = f"its stages are {', '.join(names)}" if names else "it has no stages"
    raise InputError(f"{where}: the recipe has no stage {name}; {there}")


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values there are in `node` when all anchors are written out; what contains itself
    counts once. `known`: those of the nodes that were met."""
    if node is None or id(node) in known:
        return 0 if node is None else known[id(node)]
    known[id(node)] = 1
    if not isinstance(node, yaml.ScalarNode):
        parts = (e for each in node.value for e in (each if isinstance(each, tuple) else (each,)))
        known[id(node)] += sum(_values(part, known) for part in parts)
    return known[id(node)]


def _children(node: yaml.Node | None) -> Iterator[tuple[Hashable, yaml.Node, yaml.Node]]:
    """Key or index, the node that marks the line, and the value; later keys win, so come first."""
    if isinstance(node, yaml.MappingNode):
        yield from ((key.value, key, value) for key, value in reversed(node.value))
    elif isinstance(node, yaml.SequenceNode):
        yield from ((index, value, value) for index, value in enumerate(node.value))


def _repeated(
    node: yaml.Node, place: KeyPath, seen: set[int]
) -> Iterator[tuple[KeyPath, int, int]]:
    """Keys that a mapping has twice, with both lines; an anchored node is looked at once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    yield (*place, key.value), lines[key.value], line
                lines[key.value] = line
                yield from _repeated(value, (*place, key.value), seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _repeated(value, (*place, index), seen)
