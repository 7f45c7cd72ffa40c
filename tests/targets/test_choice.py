"""`export.target` names the runtime that a file is for."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from helpers.cli import EXAMPLE, Call
from vitcompress import pipeline, registry, targets
from vitcompress.errors import InputError
from vitcompress.recipe import json_schema, load_recipe

RECIPE = EXAMPLE + "stages: []\n"


def test_it_is_onnxruntime_where_nothing_is_said(recipe: Path) -> None:
    assert targets.DEFAULT == "onnxruntime"
    assert load_recipe(recipe).export.target == targets.DEFAULT


def test_another_is_refused_with_those_there_are(recipe: Path) -> None:
    with pytest.raises(
        InputError, match=r"export\.target.*must be .onnxruntime., .openvino. or .portable."
    ):
        load_recipe(recipe, ["export.target=toaster"])
    told = json_schema()["$defs"]["ExportSection"]["properties"]["target"]
    assert told["enum"] == ["onnxruntime", "openvino", "portable"]


@pytest.mark.parametrize("command", ["run", "plan", "export"])
@pytest.mark.parametrize(
    ("target", "version", "needed"),
    [
        ("onnxruntime", "1.23.2", "onnxruntime>=1.24"),
        ("portable", "1.16.3", "onnxruntime>=1.17"),
        ("openvino", "2025.4.0", "openvino>=2026.4"),
        ("openvino", None, "openvino>=2026.4"),
    ],
)
def test_a_runtime_that_is_too_old_or_missing_is_told_before_the_work(
    command: str,
    target: str,
    version: str | None,
    needed: str,
    call: Call,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = registry.load_module(targets.__name__, target)
    monkeypatch.setattr(module, "TARGET", replace(module.TARGET, version=version))
    monkeypatch.setattr(pipeline, "load_dense", lambda _: pytest.fail("the model was read"))
    evaluation = ["--evaluation", "example:glyphs/evaluation"]
    given = ["example:glyphs", *evaluation] if command == "export" else [recipe]
    out = [] if command == "plan" else ["--out", tmp_path / "out"]
    called = call(command, *given, "--set", f"export.target={target}", *out, code=2)
    (line,) = called.stderr.strip().splitlines()
    found = "is not installed" if version is None else f"{version} cannot load"
    assert f"{needed.partition('>')[0]} {found}" in line
    assert line.endswith(f"; pip install '{needed}'")
    assert not (tmp_path / "out").exists()


def test_what_is_installed_with_the_package_runs_what_it_writes() -> None:
    """The lowest version that the package demands is that of the target which needs most."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    demanded = [*project["dependencies"], *project["optional-dependencies"]["openvino"]]
    needed: dict[str, list[Version]] = {}
    for name in registry.names(targets.__name__):
        requirement = registry.load_module(targets.__name__, name).TARGET.requirement
        needed.setdefault(Requirement(requirement).name, []).append(lowest(requirement))
    for package, versions in needed.items():
        (line,) = (each for each in demanded if Requirement(each).name == package)
        assert lowest(line) == max(versions)


def lowest(requirement: str) -> Version:
    (found,) = Requirement(requirement).specifier
    assert found.operator == ">="
    return Version(found.version)
