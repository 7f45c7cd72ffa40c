"""What a CI service is told beside people: annotations, and a summary of the job.

They go to stderr, where people read too and which GitHub reads as it reads stdout: that is for
`--json` alone.
"""

import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitcompress.errors import RunError

if TYPE_CHECKING:
    from vitcompress.report.model import Report

SUMMARY = "GITHUB_STEP_SUMMARY"
"""The environment variable with the file that GitHub shows on the page of a job."""

Level = Literal["error", "warning"]


class Service(StrEnum):
    """Where annotations are for; `none` where there shall be none."""

    GITHUB = "github"
    NONE = "none"


def on_github(given: Service | None) -> bool:
    """Whether to tell GitHub: where that is `given`, or seen from the environment."""
    return (given or os.environ.get("GITHUB_ACTIONS")) in (Service.GITHUB, "true")


def annotation(level: Level, title: str, message: str) -> str:
    """A workflow command of GitHub, on one line whatever is in the texts."""
    return f"::{level} title={_escaped(title, ':,')}::{_escaped(message)}"


def annotations(report: "Report", where: str = "") -> Iterator[str]:
    """One for each gate that failed and each warning; `where`: which run, where there are more."""
    from vitcompress.report import figures

    for gate in report.gates:
        if not gate.passed:
            title = f"Gate failed: {gate.name}" + (f" of {where}" if where else "")
            yield annotation("error", title, figures.gate_failure(gate))
    for warning in report.warnings:
        yield annotation("warning", where or "vitcompress", warning)


def tell(*lines: str) -> None:
    """Write `lines` as they are: a command has to begin its line, and is never broken."""
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.stderr.flush()


def tell_report(report: "Report") -> None:
    """All that a service shows of a run: its annotations, and `report.md` as the summary."""
    from vitcompress.report import markdown

    tell(*annotations(report))
    summarise(markdown.render(report))


def summarise(text: str) -> None:
    """Append Markdown to the summary of the job, where the service has named a file for it.

    Raises `RunError` where that cannot be written to.
    """
    if file := os.environ.get(SUMMARY):
        try:
            with Path(file).open("a", encoding="utf-8") as summary:
                summary.write(f"{text.rstrip()}\n\n")
        except OSError as error:
            raise RunError(f"{SUMMARY}: {file}: cannot be written to: {error.strerror}") from error


def _escaped(text: str, separators: str = "") -> str:
    """`text` with what would end a command, or a property with such `separators`, as %XX."""
    for each in ("%", "\r", "\n", *separators):
        text = text.replace(each, f"%{ord(each):02X}")
    return text
