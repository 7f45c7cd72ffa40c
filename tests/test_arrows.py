"""Which part of the package may import which: the arrows all point one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitcompress

NAME = vitcompress.__name__
HOME = Path(vitcompress.__file__).parent
STAGES = {file.parent.name for file in HOME.glob("stages/*/stage.py")}
# By part, what none of its files imports, neither at its top nor in a function.
FORBIDDEN: dict[str, set[str]] = {
    "methods": {"model", "tasks", "targets", "export", "measure", "stages"},
    "tasks": {"model", "targets", "export", "measure", "stages"},
    "model": {"targets", "export", "measure", "stages"},
    "targets": {"tasks", "export", "measure", "stages"},
    "export": {"measure", "stages"},
    "measure": {"stages"},
    "data": {"model", "methods", "tasks", "targets", "export", "measure", "stages"},
    "report": {"model", "methods", "tasks", "targets", "export", "measure", "stages"},
    "recipe.py": {"torch", "timm", "numpy", "onnx", "model.architecture"},
}
# They use all parts.
RUNNING = {
    *("chain", "pipeline", "searching.search", "cli"),
    *("output", "evaluation", "inspection", "gates"),
}
# Borrowed by one stage of another. It may get shorter, never longer.
BORROWED: set[tuple[str, str]] = set()


def imports(file: Path) -> Iterator[str]:
    """The modules that `file` imports and the names it takes of them; our own without our name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            home = file.relative_to(HOME).parts[: -node.level] if node.level else ()
            module = ".".join([*home, *filter(None, [node.module])])
            found = [f"{module}.{each.name}" for each in node.names]
        elif isinstance(node, ast.Import):
            found = [each.name for each in node.names]
        else:
            continue
        yield from (name.removeprefix(f"{NAME}.") for name in found)


def files(part: str) -> list[Path]:
    return [HOME / part] if part.endswith(".py") else sorted((HOME / part).rglob("*.py"))


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


@pytest.mark.parametrize("part", FORBIDDEN)
def test_no_part_imports_what_stands_above_it(part: str) -> None:
    assert files(part)
    wrong = [
        (str(file.relative_to(HOME)), name)
        for file in files(part)
        for name in imports(file)
        if any(within(name, above) for above in FORBIDDEN[part] | RUNNING)
    ]
    assert not wrong


def test_latencies_are_measured_of_what_the_export_writes() -> None:
    used = {name for file in files("measure") for name in imports(file) if within(name, "export")}
    assert used <= {f"export.onnx.{name}" for name in ("Part", "export_onnx", "export_parts")}


def test_stages_share_what_lies_beside_them_and_know_none_of_each_other() -> None:
    borrowed = {
        (str(file.relative_to(HOME)), name.rpartition(".")[0])
        for stage in STAGES
        for file in files(f"stages/{stage}")
        for name in imports(file)
        for other in STAGES - {stage}
        if within(name, f"stages.{other}")
    }
    assert borrowed == BORROWED
    shared = [file for file in files("stages") if file.parent.name == "stages"]
    beside = {
        (file.name, name)
        for file in shared
        if file.name != "registry.py"  # it lists the configs of all
        for name in imports(file)
        if any(within(name, f"stages.{stage}") for stage in STAGES)
    }
    assert not beside
