from vitcompress.report import figures, markdown
from vitcompress.report.model import Report


def test_tables_are_whole_and_null_is_a_dash(report: Report, failed: Report, empty: Report) -> None:
    for each in (report, failed, empty):
        text = markdown.render(each)
        assert figures.headline(each).split(";")[0] in text
        assert "None" not in text
        assert "null" not in text
        for block in text.split("\n\n"):
            widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
            assert len(widths) <= 1, block
    assert "| Top-1 | 86.4 % | 86.2 % (83.9–88.2) | −0.2 points |" in markdown.render(report)
    assert "| Top-1 |" not in markdown.render(failed)
    assert "| Agreement | – | 98.6 % (97.7–99.2) |  |" in markdown.render(failed)
    assert "| Size | 22.9 MB | 6.17 MB | −73 % |" in markdown.render(report)


def test_a_failing_gate_shows(report: Report, failed: Report) -> None:
    assert "failed" not in markdown.render(report)
    text = markdown.render(failed)
    assert "2 of 3 gates failed" in text
    assert "| ✗ **failed** | Top-1 may drop by at most 1 point | – not measured |" in text
    assert "| ✓ passed | Speed-up at least 1.5× | 2.652× |" in text


def test_hostile_text_stays_text(report: Report) -> None:
    hostile = report.model_copy(
        update={"model": {"name": "<script>|`x`\n# big"}, "warnings": ["a\n\n| b *c* <img>"]}
    )
    text = markdown.render(hostile)
    assert "<script" not in text
    assert "<img" not in text
    assert r"# &lt;script>\|\`x\` # big, vit-int8" in text
    assert r"- ⚠ a \| b \*c\* &lt;img>" in text
