"""Folders of alternatives, one module each: known by their file names, imported when used.

Another package adds one by an entry point whose group is the name of the folder's package:

    [project.entry-points."vitcompress.tasks"]
    ranking = "my_package.ranking"
"""

import ast
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from vitcompress.errors import InputError


def names(package: str) -> tuple[str, ...]:
    """The modules of `package` in alphabetical order, those that other packages add included, but
    for those that start with an underscore.

    Neither they nor the package are imported.
    """
    return tuple(sorted({*_own(package), *added(package)}))


@cache
def added(package: str) -> dict[str, str]:
    """By name, the modules that other packages add to `package`.

    Raises `InputError` where one has a name that is taken.
    """
    found = entry_points(group=package)
    taken = [entry for entry in found if entry.name in _own(package)]
    taken += [entry for entry in found if len(found.select(name=entry.name)) > 1]
    if taken:
        raise InputError(
            f"{taken[0].value}: adds {taken[0].name!r} to {package}, where there is one already; "
            "uninstall one of them"
        )
    return {entry.name: entry.value for entry in found}


def _own(package: str) -> set[str]:
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    found = {module.name for module in pkgutil.iter_modules(places or [])}
    return {name for name in found if not name.startswith("_")}


def summaries(package: str) -> dict[str, str]:
    """By name of `names`, what each module says of itself: the first paragraph of its docstring.

    Nothing is imported, but for the packages that others add modules from.
    """
    spec = find_spec(package)
    homes = [Path(place) for place in (spec.submodule_search_locations if spec else None) or []]
    files = {n: f for n in _own(package) for home in homes if (f := home / f"{n}.py").is_file()}
    for name, module in added(package).items():
        if (spec := find_spec(module)) is not None and spec.origin is not None:
            files[name] = Path(spec.origin)
    found = {}
    for name, file in sorted(files.items()):
        told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[name] = " ".join(told.partition("\n\n")[0].split())
    return found


def load_module(package: str, name: str) -> ModuleType:
    """The module `name` of `package`. Raises `InputError` for a name that is not there."""
    known = names(package)
    if name not in known:
        raise InputError(f"{name!r} is none of {', '.join(known)}")
    return import_module(_module(package, name))


def _module(package: str, name: str) -> str:
    return added(package).get(name, f"{package}.{name}")


@dataclass(frozen=True)
class OneOf:
    """Says of a field that it is one of the `names` of `package`, as a `Literal` of them would.

    `Annotated[str, OneOf("vitcompress.tasks")]`.
    """

    package: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.literal_schema(list(names(self.package)))
