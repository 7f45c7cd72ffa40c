"""The report as Markdown, for a pull request."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vitcompress.report import figures
from vitcompress.report import format as fmt
from vitcompress.report.details import stage_facts
from vitcompress.report.model import Report


def render(report: Report) -> str:
    """`report.md`."""
    blocks = [
        f"# {_text(figures.model_name(report))}, {_text(report.made.recipe or 'compressed')}",
        f"**{figures.verdict(report)}.** {_text(figures.headline(report))}",
        *([_list(f"⚠ {_text(warning)}" for warning in report.warnings)] if report.warnings else []),
        *_gates(report),
        _comparison(report),
        *([figures.INTERVALS] if report.final.intervals else []),
        *_changes(report),
        *_stages(report),
        *_artifacts(report),
        *_environment(report),
    ]
    return "\n\n".join(blocks) + "\n"


def comparison(reports: Mapping[str, Report]) -> str:
    """The final figures of several runs by name, after the baseline of the first, and which of
    their gates failed."""
    first = next(iter(reports.values()))
    columns = [first.baseline, *(report.final for report in reports.values())]
    rows = [
        [figure.label, *(figures.with_interval(figure, metrics) for metrics in columns)]
        for figure in figures.shown(columns)
    ]
    rows.append(["Gates", fmt.DASH, *map(_verdict, reports.values())])
    heads = ["", "Baseline", *map(_text, reports)]
    alike = figures.alike(reports.values())
    notes = [] if alike else ["⚠ These runs are not of one model on one set of images."]
    return "\n\n".join([_table(heads, rows, right=range(1, len(heads))), *notes]) + "\n"


def _verdict(report: Report) -> str:
    if not report.gates:
        return fmt.DASH
    failed = [_text(figures.gate_limit(gate)) for gate in report.gates if not gate.passed]
    return "✗ " + "; ".join(failed) if failed else "✓"


def _comparison(report: Report) -> str:
    columns = figures.columns(report)
    rows = []
    for figure in figures.shown(metrics for _, metrics in columns):
        values = [figures.with_interval(figure, metrics) for _, metrics in columns]
        moved = figures.change(figure, report.baseline, report.final).text if figure.change else ""
        rows.append([figure.label, *values, moved])
    heads = [_text(name) for name, _ in columns]
    return _table(["", *heads, "Change"], rows, right=range(1, len(columns) + 2))


def _gates(report: Report) -> Iterator[str]:
    if report.gates:
        yield "## Gates"
        rows = [
            [
                "✓ passed" if gate.passed else "✗ **failed**",
                _text(figures.gate_limit(gate)),
                figures.gate_value(gate) if gate.value is not None else f"{fmt.DASH} not measured",
            ]
            for gate in report.gates
        ]
        yield _table(["", "Gate", "Measured"], rows, right=(2,))


def _changes(report: Report) -> Iterator[str]:
    if (found := report.changes) is None or found.changed is None:
        return
    yield "## Answers that changed"
    yield figures.changes_told(found)
    if found.classes:
        rows = [[_text(c.name), str(c.images), str(c.before), str(c.after)] for c in found.classes]
        yield _table(["Class", "Images", "Right before", "Right now"], rows, right=(1, 2, 3))


def _stages(report: Report) -> Iterator[str]:
    if report.stages:
        yield "## Stages"
        rows = []
        for stage in report.stages:
            pairs = stage_facts(stage.details)
            told = ", ".join(f"{fmt.label(key)} {fmt.value(item, key)}" for key, item in pairs)
            name = _text(stage.name)
            kind = _text(stage.type)
            rows.append([name, kind, fmt.seconds(stage.seconds), _text(told) or fmt.DASH])
        yield _table(["Stage", "Type", "Time", "Details"], rows, right=(2,))


def _artifacts(report: Report) -> Iterator[str]:
    if report.artifacts:
        yield "## Artifacts"
        rows = [
            [
                _code(artifact.path),
                fmt.size(artifact.bytes),
                _code(artifact.sha256[:12]),
                _text(fmt.value(artifact.parity)),
            ]
            for artifact in report.artifacts
        ]
        yield _table(["File", "Size", "sha256", "Parity"], rows, right=(1,))


def _environment(report: Report) -> Iterator[str]:
    if report.environment:
        yield "## Environment"
        if report.made.command:
            yield f"{_code(report.made.command)}, {fmt.date(report.made.date)}"
        yield _list(
            f"{_text(fmt.label(key))}: {_text(fmt.value(item, key))}"
            for key, item in report.environment.items()
        )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    aligned = set(right)
    rule = ["---:" if index in aligned else "---" for index in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _text(text: str) -> str:
    """`text` on one line, with nothing in it that Markdown or HTML would act on."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def _code(text: str) -> str:
    """`text` as a code span that fits in a table cell."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "\\|") + "`"
