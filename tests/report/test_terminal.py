from rich.console import Console, RenderableType

from vitcompress.details import Row, Table
from vitcompress.report import terminal
from vitcompress.report.model import Report


def _rendered(what: RenderableType, width: int = 80) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def _shown(report: Report) -> str:
    return _rendered(terminal.summary(report))


def test_baseline_final_and_change(report: Report) -> None:
    text = _shown(report)
    rows = {line.split("  ")[0]: line.split("  ", 1)[-1].split() for line in text.splitlines()}
    assert rows["Size"] == ["22.9", "MB", "6.17", "MB", "−73", "%"]
    assert rows["Top-1"] == ["86.4", "%", "86.2", "%", "−0.2", "points"]
    assert rows["Agreement"] == ["–", "98.6", "%"]
    assert max(map(len, text.splitlines())) <= 80


def test_runs_side_by_side(report: Report, failed: Report) -> None:
    smaller = report.model_copy(
        update={"final": report.final.model_copy(update={"bytes": 3_100_000})}
    )
    text = _rendered(terminal.comparison({"out/a": report, "out/b": smaller}, 80))
    lines = text.splitlines()
    assert lines[0].split() == ["baseline", "out/a", "out/b"]
    assert lines[1].split() == ["Size", "22.9", "MB", "6.17", "MB", "3.10", "MB"]
    assert lines[-1].split() == ["Gates", "passed", "–", "yes", "yes"]
    other = _rendered(terminal.comparison({"out/a": report, "out/b": failed}, 80))
    assert "! not one model on one set of images" in other


def test_names_of_runs_are_not_broken(report: Report) -> None:
    names = [f"out/a-folder-with-a-long-name-{n}" for n in range(3)]
    text = _rendered(terminal.comparison(dict.fromkeys(names, report), 80))
    assert [line.split() for line in text.splitlines()[:3]] == [
        [f"[{n}]", name] for n, name in enumerate(names, 1)
    ]
    assert text.splitlines()[3].split() == ["baseline", "[1]", "[2]", "[3]"]


def test_gates_and_warnings(report: Report, failed: Report, empty: Report) -> None:
    assert "✗" not in _shown(report)
    assert "✓ Size at most 0.4× of the baseline  0.2695×" in _shown(report)
    assert "! 2 images could not be read" in _shown(report)
    assert "✗ Top-1 may drop by at most 1 point  not measured" in _shown(failed)
    assert "None" not in _shown(failed) + _shown(empty)


def test_markup_in_a_warning_is_only_text(report: Report) -> None:
    assert "! [red]x[/nothing]" in _shown(
        report.model_copy(update={"warnings": ["[red]x[/nothing]"]})
    )


def test_heads_of_columns_are_never_cut_short() -> None:
    row: Row = {"layer": "a.name.that.is.long", **{f"importance_{i}": 0.5 for i in range(8)}}
    console = Console(width=60, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(terminal.table("quant", Table.of("sensitivities", [row])), crop=False)
    assert capture.get().count("importance") == 8
