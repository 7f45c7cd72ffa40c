"""Which number a class has: its place in a list of classes, or in the order of folder names."""

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitcompress.console import note
from vitcompress.data.sources import Label, Listing
from vitcompress.errors import InputError
from vitcompress.foreign import reading, text_of

_COLUMNS = 20  # that are looked at
# What people write over the columns of a list of classes.
_TITLE = re.compile(
    r"(?:(?:wn|class|label|synset|target)[ _]?)?(?:ids?|idx|index|number|name)"
    r"|class(?:es)?|labels?|target|synset|folder|words|description|",
    re.IGNORECASE,
)


def labels_of(
    listing: Listing, source: str, classes: Path | None, model: Sequence[str] | None = None
) -> tuple[list[Label], int | None]:
    """The label of each image, and how many classes there are; None where the source stores numbers
    without saying.

    A class has the place of its name in the file `classes`, see `read_classes`; without one, its
    place among the names that the `model` has for its classes, if all are there; else its place
    among the names in timm's order, see `natural_key`.

    Raises `InputError` for an image without a label, and for a class that the file does not name.
    """
    if None in listing.classes:
        name = listing.names[listing.classes.index(None)]
        raise InputError(
            f"{source}: {name} has no label; put images in one folder a class, "
            "or give a .tar or .npz with labels"
        )
    stored = {found for found in listing.classes if isinstance(found, str)}
    if classes is not None:
        names = read_classes(classes, stored)
    elif listing.class_names and _all_named(listing.class_names, model or ()):
        names = list(model or ())
        note(f"{source}: classes are told by the names that the model has for them")
    else:
        names = in_order(listing.class_names, source)
    places = {normal(name): place for place, name in enumerate(names)}
    places |= {name: place for place, name in enumerate(names)}  # folders may differ in that only
    labels: list[Label] = []
    for found in listing.classes:
        if isinstance(found, str):
            label: Label | None = places.get(found, places.get(normal(found)))
        else:
            label = found
        if label is None:
            raise InputError(f"{source}: class {found} is not named in {classes}; add it there")
        if isinstance(label, int) and label < 0:
            raise InputError(
                f"{source}: has the label {label}, which is no class; take those images out, or "
                "number the classes from 0"
            )
        if classes and isinstance(label, int) and label >= len(names):
            raise InputError(f"{source}: label {label}, but {classes} has {len(names)} classes")
        labels.append(label)
    return labels, len(names) or None


def tells_classes(
    listing: Listing, classes: Path | None, model: Sequence[str] | None, outputs: int
) -> bool:
    """Whether the labels of all images of `listing` are sure to be classes of a model with so many
    outputs: numbers, names in the file `classes` or of the `model`, or a folder for each output."""
    if None in listing.classes:
        return False
    stored = {found for found in listing.classes if isinstance(found, str)}
    if not stored:
        return not any(isinstance(found, tuple) for found in listing.classes)
    if classes is not None:
        return {*map(normal, stored)} <= {*map(normal, read_classes(classes, stored))}
    return _all_named(listing.class_names, model or ()) or len(listing.class_names) == outputs


def _all_named(classes: Sequence[str], model: Sequence[str]) -> bool:
    """Whether each of `classes` is one of those of the `model`, and no other has its name."""
    counts = Counter(map(normal, model))
    return all(counts[normal(name)] == 1 for name in classes)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """The key of timm's order of names: numbers in them by value, letters whatever their case."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


def in_order(names: Sequence[str], source: str) -> list[str]:
    """`names` in timm's order; where another library would have another order, that is said."""
    found = sorted(names, key=lambda name: (natural_key(name), name))
    if found != (plain := sorted(names)):
        at = next(place for place, name in enumerate(found) if name != plain[place])
        note(
            f"{source}: classes are in timm's order, in which class {at} is {found[at]} and not "
            f"{plain[at]} as in torchvision's; --classes FILE gives another"
        )
    return found


def normal(name: str) -> str:
    """`name` as names are compared: é is the same in one character and in two."""
    return unicodedata.normalize("NFC", name)


def read_classes(path: Path, wanted: set[str]) -> list[str]:
    """The names of classes in their order, from a list of them; those in `wanted` are among them.

    A text has one class a line: its name alone, or in a column of a line that has several (with
    tabs, commas or spaces between: `n01440764 tench, Tinca tinca`; `0 n01440764`). The column with
    `wanted` in it counts, else the first; one that counts from 0 or 1 gives the order. Blank lines,
    lines that start with # and a first line of titles (`wnid,name`) are ignored. A .json is a list
    of names, an object of names and their places, or of places and names (`{"0": ["n01440764",
    "tench"]}`).

    Raises `InputError` for a file that is none of these, and for a name that is there twice.
    """
    text = text_of(path, "write one folder name a line")
    rows = _json_rows(text, path) if path.suffix.lower() == ".json" else None
    with reading(path, "not readable as a list of classes", "write one folder name a line"):
        readings = [rows] if rows is not None else list(_text_rows(text))
    readings = [rows for rows in readings if rows]
    if not readings:
        raise InputError(f"{path}: the classes file names no class; write one folder name a line")
    have = {normal(name) for name in wanted}
    if any(_is_titled(rows, have) for rows in readings):
        readings = [rows[1:] for rows in readings]
    columns = [column for rows in readings for column in _columns(rows)]
    fitting = (column for column in columns if have <= {normal(name) for name in column})
    names = next(fitting, columns[0])
    name, times = Counter(map(normal, names)).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path}: class {name} is named {times} times; name each class once")
    return names


Rows = list[list[str]]


def _text_rows(text: str) -> Iterator[Rows]:
    """The lines of `text` in columns, by each of the signs that may stand between them."""
    lines = [line.strip() for line in text.splitlines() if not line.startswith("#")]
    lines = [line for line in lines if line]
    yield [line.split("\t") for line in lines]
    yield [row for row in csv.reader(lines, skipinitialspace=True) if row]
    yield [line.split(None, 1) for line in lines]


def _is_titled(rows: Rows, wanted: set[str]) -> bool:
    """Whether the first of `rows` says what the columns are."""
    titled = all(_TITLE.fullmatch(cell.strip()) for cell in rows[0])
    return titled and len(rows) > 1 and not wanted.intersection(rows[0])


def _json_rows(text: str, path: Path) -> Rows:
    with reading(path, "not readable as JSON", "mend it"):
        content = json.loads(text)
    listed = isinstance(content, list)
    items = list(enumerate(content)) if listed else list(getattr(content, "items", list)())
    if not listed and items and all(type(place) is int for _, place in items):
        items = [(place, name) for name, place in items]
    rows = [[key, *(value if isinstance(value, list) else [value])] for key, value in items]
    if not all(type(cell) in (str, int) for row in rows for cell in row):
        raise InputError(
            f"{path}: neither a list of class names, nor an object of names and their places; give "
            '["n01440764", …] or {"0": "n01440764", …}'
        )
    return [[str(cell) for cell in row] for row in rows]


def _columns(rows: Rows) -> Iterator[list[str]]:
    """The columns that all `rows` have, in the order of the one that counts, if any does."""
    width = min(_COLUMNS, *map(len, rows))
    columns = [[row[at].strip() for row in rows] for at in range(width)]
    counts = [[str(start + place) for place in range(len(rows))] for start in (0, 1)]
    for column in columns:
        count = next((each for each in counts if sorted(each) == sorted(column)), None)
        if width > 1 and count:
            order = [place for _, place in sorted((int(n), at) for at, n in enumerate(column))]
            columns = [[each[place] for place in order] for each in columns if each is not column]
            columns.append(count)  # folders may be named by these numbers
            break
    yield from columns
