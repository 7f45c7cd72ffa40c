"""The report as JUnit XML: one test case for each gate and each parity check."""

import re
from xml.etree import ElementTree

from vitcompress.report import figures
from vitcompress.report import format as fmt
from vitcompress.report.model import Report

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report) -> str:
    """`junit.xml`."""
    cases: list[tuple[str, str, str | None]] = [
        ("gates", gate.name, None if gate.passed else figures.gate_failure(gate))
        for gate in report.gates
    ]
    for artifact in report.artifacts:
        if "passed" in artifact.parity:
            failure = f"parity failed: {fmt.value(artifact.parity)}"
            cases.append(
                ("parity", artifact.path, None if artifact.parity["passed"] is True else failure)
            )
    suite = ElementTree.Element(
        "testsuite",
        name="vitcompress",
        tests=str(len(cases)),
        failures=str(sum(failure is not None for *_, failure in cases)),
        errors="0",
        skipped="0",
        time=f"{sum(stage.seconds for stage in report.stages):.3f}",
    )
    for group, name, failed in cases:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"vitcompress.{group}", name=_clean(name), time="0"
        )
        if failed is not None:
            ElementTree.SubElement(case, "failure", type=group, message=_clean(failed))
    output = ElementTree.SubElement(suite, "system-out")
    output.text = _clean("\n".join([figures.headline(report), *report.warnings]))
    ElementTree.indent(suite)
    body = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def _clean(text: str) -> str:
    """`text` without the characters that XML 1.0 cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
