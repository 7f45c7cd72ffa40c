"""The report in a terminal: the table at the end of a run."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vitcompress.report import figures
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


def _gate(gate: GateResult) -> Text:
    mark = ("✓ ", "green") if gate.passed else ("✗ ", "bold red")
    measured = figures.gate_value(gate) if gate.value is not None else "not measured"
    return Text.assemble(mark, figures.gate_limit(gate), (f"  {measured}", "dim"))
