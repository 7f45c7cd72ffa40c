"""What people read in a terminal: the table at the end of a run, and tables of sensitivities."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vitcompress.report import figures, format
from vitcompress.report.model import GateResult, Report

_LEFT_OUT = ("latency_ms.p90", "latency_ms.p99")
_TREND = {"better": "green", "worse": "yellow", "same": "dim"}


def summary(report: Report) -> RenderableType:
    """Baseline against final, the gates, the warnings."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("baseline", "final", "change"):
        table.add_column(name, justify="right")
    for figure in figures.FIGURES:
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


def table(title: str, rows: list[dict[str, Any]]) -> RenderableType:
    """Rows of one shape under their keys."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = Table(title=title, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        shown.add_column(format.label(column), justify="left" if column == columns[0] else "right")
    for row in rows:
        shown.add_row(*(format.value(row.get(column), column) for column in columns))
    return shown


def _gate(gate: GateResult) -> Text:
    mark = ("✓ ", "green") if gate.passed else ("✗ ", "bold red")
    measured = figures.gate_value(gate) if gate.value is not None else "not measured"
    return Text.assemble(mark, figures.gate_limit(gate), (f"  {measured}", "dim"))
