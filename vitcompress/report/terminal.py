"""What people read in a terminal: the table at the end of a run, and tables of sensitivities."""

from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from vitcompress.details import Table
from vitcompress.report import figures, format
from vitcompress.report.model import GateResult, Report

_LEFT_OUT = ("latency_ms.p90", "latency_ms.p99")
_LABELS, _CELL = 22, 9  # letters across: of the names of figures, and of a figure
_TREND = {"better": "green", "worse": "yellow", "same": "dim"}


def summary(report: Report) -> RenderableType:
    """Baseline against final, the gates, the warnings."""
    table = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("baseline", "final", "change"):
        table.add_column(name, justify="right")
    for figure in figures.shown((report.baseline, report.final)):
        if figure.key in _LEFT_OUT:
            continue
        before, after = figure.read(report.baseline), figure.read(report.final)
        moved = figures.change(figure, report.baseline, report.final)
        table.add_row(
            figure.label,
            Text(figure.text(before), "dim" if before is None else ""),
            Text(figure.text(after), "dim" if after is None else "bold"),
            Text(moved.text if figure.change else "", _TREND[moved.trend]),
        )
    return Group(
        Text(figures.headline(report), "bold"),
        "",
        table,
        *([""] if report.gates else []),
        *(_gate(gate) for gate in report.gates),
        *([""] if report.warnings else []),
        *(Text.assemble(("! ", "yellow"), warning) for warning in report.warnings),
    )


def comparison(reports: dict[str, Report], width: int) -> RenderableType:
    """The final figures of several runs, one column each, after the baseline of the first.

    Where the names of the runs do not fit beside each other in `width` letters, numbers stand for
    them, explained above: no name is broken.
    """
    first = next(iter(reports.values()))
    shown = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    shown.add_column("")
    room = _LABELS + sum(max(len(name), _CELL) + 2 for name in ("baseline", *reports))
    numbers = [f"[{number}]" for number in range(1, len(reports) + 1)] if room > width else None
    for name in ("baseline", *(numbers or reports)):
        shown.add_column(Text(name), justify="right", no_wrap=True)
    columns = [first.baseline, *(report.final for report in reports.values())]
    for figure in figures.shown(columns):
        if figure.key not in _LEFT_OUT:
            shown.add_row(figure.label, *(figure.text(figure.read(m)) for m in columns))
    passed = (
        format.DASH if not report.gates else "yes" if report.passed else "no"
        for report in reports.values()
    )
    shown.add_row("Gates passed", format.DASH, *passed)
    legend = [
        Text(f"{number} {name}") for number, name in zip(numbers or (), reports, strict=False)
    ]
    note = Text("! not one model on one set of images", "yellow")
    return Group(*legend, shown, *([] if figures.alike(reports.values()) else [note]))


def table(title: str, found: Table) -> RenderableType:
    """A table under the names of its columns, no cell cut short: print it with `crop=False`."""
    shown = Grid(title=title, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    cells = {
        column.name: [
            format.value(row.get(column.name), column.unit or column.name) for row in found.rows
        ]
        for column in found.columns
    }
    for name, texts in cells.items():
        shown.add_column(
            format.label(name),
            justify="right" if shown.columns else "left",
            min_width=max(map(len, [*texts, *format.label(name).split()])),
        )
    for row in zip(*cells.values(), strict=True):
        shown.add_row(*row)
    return shown


def _gate(gate: GateResult) -> Text:
    mark = ("✓ ", "green") if gate.passed else ("✗ ", "bold red")
    measured = figures.gate_value(gate) if gate.value is not None else "not measured"
    return Text.assemble(mark, figures.gate_limit(gate), (f"  {measured}", "dim"))
