"""Folders of alternatives, one module each: known by their file names, imported when used."""

import ast
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from vitcompress.errors import InputError


def names(package: str) -> tuple[str, ...]:
    """The modules of `package` in alphabetical order, but for those that start with an underscore.

    Neither they nor the package are imported.
    """
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    found = {module.name for module in pkgutil.iter_modules(places or [])}
    return tuple(sorted(name for name in found if not name.startswith("_")))


def summaries(package: str) -> dict[str, str]:
    """By name of `names`, what each module says of itself: the first paragraph of its docstring.

    Nothing is imported.
    """
    spec = find_spec(package)
    homes = [Path(place) for place in (spec.submodule_search_locations if spec else None) or []]
    found = {}
    for name in names(package):
        file = next(f for home in homes if (f := home / f"{name}.py").is_file())
        told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[name] = " ".join(told.partition("\n\n")[0].split())
    return found


def load_module(package: str, name: str) -> ModuleType:
    """The module `name` of `package`. Raises `InputError` for a name that is not there."""
    known = names(package)
    if name not in known:
        raise InputError(f"{name!r} is none of {', '.join(known)}")
    return import_module(f"{package}.{name}")


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
