"""Modules of a folder, known by their names and imported when they are used."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ValidationError

from vitcompress import registry
from vitcompress.errors import InputError
from vitcompress.registry import OneOf


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose modules must not be imported to be known, but for `fine`."""
    home = tmp_path / "bench_of_tools"
    (home / "saws").mkdir(parents=True)
    for name in ("__init__", "plane", "_shared", "saws/__init__", "notes.txt"):
        path = home / name
        (path if path.suffix else path.with_suffix(".py")).write_text("raise OSError('imported')")
    (home / "fine.py").write_text("VALUE = 3")
    monkeypatch.syspath_prepend(tmp_path)
    return "bench_of_tools"


def test_names_come_from_files_without_an_import(package: str) -> None:
    assert registry.names(package) == ("fine", "plane", "saws")
    assert package not in sys.modules


def test_a_module_is_loaded_by_its_name(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "__init__.py").write_text("")
    assert registry.load_module(package, "fine").VALUE == 3
    assert f"{package}.plane" not in sys.modules
    for name in ("chisel", "_shared", "fine.VALUE", "", "..gates"):
        with pytest.raises(InputError, match="is none of fine, plane, saws"):
            registry.load_module(package, name)


def test_a_field_reads_as_a_literal_of_the_names_would(package: str) -> None:
    class Found(BaseModel):
        tool: Annotated[str, OneOf(package)] | None = None

    class Written(BaseModel):
        tool: Literal["fine", "plane", "saws"] | None = None

    assert Found(tool="plane").tool == "plane"
    found, written = (m.model_json_schema()["properties"] for m in (Found, Written))
    assert found == written
    assert found["tool"]["anyOf"][0]["enum"] == ["fine", "plane", "saws"]
    errors = []
    for model in (Found, Written):
        with pytest.raises(ValidationError) as caught:
            model.model_validate({"tool": "chisel"})
        errors.append(json.dumps(caught.value.errors(include_url=False)))
    assert errors[0] == errors[1]


def test_names_of_tasks_need_no_torch() -> None:
    script = (
        "import sys; from vitcompress import registry; "
        "print(registry.names('vitcompress.tasks')); assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "'embedding'" in run.stdout
