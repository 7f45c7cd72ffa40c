from xml.etree import ElementTree

from vitcompress.report import junit
from vitcompress.report.model import Report


def test_everything_passed(report: Report) -> None:
    suite = ElementTree.fromstring(junit.render(report).encode())
    assert suite.get("name") == "vitcompress"
    assert (suite.get("tests"), suite.get("failures")) == ("3", "0")
    names = [case.get("name") for case in suite.iter("testcase")]
    assert names == ["max_drop.top1", "max_ratio.bytes", "model.onnx"]
    assert not list(suite.iter("failure"))


def test_failures_are_counted_and_told(failed: Report) -> None:
    broken = failed.artifacts[0].model_copy(update={"parity": {"passed": False, "layer": "fc2"}})
    report = failed.model_copy(update={"artifacts": [broken]})
    suite = ElementTree.fromstring(junit.render(report).encode())
    messages = [failure.get("message") for failure in suite.iter("failure")]
    assert suite.get("failures") == "3"
    assert messages == [
        "top1 was not measured, so max_drop.top1 (limit 1) cannot hold",
        "agreement is 98.6, at least 99 required",
        "parity failed: passed no, layer fc2",
    ]


def test_any_text_is_well_formed(report: Report) -> None:
    hostile = report.model_copy(update={"warnings": ["<a> & \x00 \x1b[31m ]]>"]})
    suite = ElementTree.fromstring(junit.render(hostile).encode())
    assert "<a> & � �[31m ]]>" in (suite.findtext("system-out") or "")
