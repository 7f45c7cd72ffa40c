import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from vitcompress.details import Column, Gallery, Pictures, Table
from vitcompress.report import html, svg
from vitcompress.report.details import Chart
from vitcompress.report.model import Details, Report, StudyReport
from vitcompress.report.overview import overview

VOID = {"meta", "br", "img", "link", "input", "hr"}


class _Page(HTMLParser):
    """Checks that tags nest, and keeps the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and (not self.open or self.open[-1] == tag):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.extend(data.split())

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_nothing_is_fetched_and_nothing_runs(report: Report) -> None:
    page = html.render(report)
    assert not re.search(r"https?:|//\w|url\(|@import|<script|<link|\bsrc=(?!.data:)", page)
    assert "prefers-color-scheme: dark" in page


def test_the_figures_are_there(report: Report) -> None:
    text = _Page(html.render(report)).text
    for figure in ("3.71×", "22.9 → 6.17 MB", "−0.2 points", "98.6 %", "0.0021", "1.26 G", "−73 %"):
        assert figure in text
    assert "All 2 gates passed" in text
    assert "2 images could not be read" in text


def test_null_is_a_dash(report: Report, failed: Report, empty: Report) -> None:
    for each in (report, failed, empty):
        text = _Page(html.render(each)).text
        assert "None" not in text
        assert "nan" not in text.split()
    text = _Page(html.render(empty)).text
    assert text.count("– not measured") == 2  # size and speed; of the others none is named
    assert "Top-1" not in text


def test_cards_are_of_what_was_measured(embedded: Report) -> None:
    text = _Page(html.render(embedded)).text
    assert "Cosine 0.999960 of 1,000 images" in text
    assert "✓ passed Same nearest neighbour at least 95 % 96.4 %" in text
    assert "Top-1" not in text


def test_a_failing_gate_shows(report: Report, failed: Report) -> None:
    assert "✗" not in html.render(report)
    text = _Page(html.render(failed)).text
    assert "✗ 2 of 3 gates failed" in text
    assert "✗ failed Top-1 may drop by at most 1 point – not measured" in text
    assert "✗ failed Agreement at least 99 % 98.6 %" in text
    assert "✓ passed Speed-up at least 1.5× 2.652×" in text


def test_the_decision_comes_first(report: Report, failed: Report) -> None:
    text = _Page(html.render(report.model_copy(update={"gates": failed.gates}))).text
    marks = (
        "27 November 2026, 23:41 UTC deit_tiny_patch16_224, vit-int8",
        "2 of 3 gates failed",
        "✗ failed Agreement at least 99 % 98.6 % 1,000 images do not settle it",
        "3.71× smaller and 2.65× faster",
        "What was gained, and at what cost",
        "Stage by stage",
        "python predict.py image.jpg",
        "vitcompress run vit-int8",
    )
    places = [text.find(mark) for mark in marks[:-2]]
    assert places == sorted(places)
    assert places[0] >= 0
    assert marks[-1] in text
    with_script = report.artifacts[0].model_copy(update={"path": "predict.py"})
    assert marks[-2] in html.render(report.model_copy(update={"artifacts": [with_script]}))
    assert marks[-2] not in text  # no such file was written


def test_a_stage_shows_one_chart_openly(report: Report) -> None:
    page = html.render(report)
    opened = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert opened.count("<svg") == 2  # that of all stages, and what the second chose
    assert "Squared error" in opened
    assert opened.count("<table") == 0


def test_the_overview_places_models_by_what_was_measured(report: Report) -> None:
    found = overview(report)
    assert found is not None
    assert found.figure.key == "top1"
    assert list(found.costs.values()) == ["MACs per image", "file size", "latency p50"]
    root = ElementTree.fromstring(str(found.drawn))
    told = {mark.findtext("title"): mark for mark in root.iter("circle")}
    assert len(told) == 4  # the baseline, and the end at each cost
    (size,) = (mark for words, mark in told.items() if "file size 27 %" in str(words))
    (speed,) = (mark for words, mark in told.items() if "latency p50 38 %" in str(words))
    assert float(size.get("cx", "")[:-1]) / float(speed.get("cx", "")[:-1]) == pytest.approx(
        (6_174_211 / 22_913_024) / (1 / 2.652), abs=1e-3
    )
    assert size.get("cy") == speed.get("cy")
    nothing = {"top1": None, "agreement": None}
    unmeasured = report.model_copy(update={"final": report.final.model_copy(update=nothing)})
    assert overview(unmeasured) is None


def test_names_in_a_chart_cover_nothing() -> None:
    spots = [(60.0, 100.0, "merge"), (62.0, 100.0, "quant"), (63.0, 104.0, "recover")]
    drawn = [ElementTree.fromstring(str(each)) for each in svg.names(spots, 200)]
    heights = {float(each.get("y", "")) for each in drawn if each.tag == "text"}
    assert len(heights) == 3
    assert all(11 < height < 200 and abs(height - 100) >= 11 for height in heights)


def test_a_failed_parity_shows(report: Report) -> None:
    broken = report.artifacts[0].model_copy(update={"parity": {"passed": False}})
    assert "✗ failed" in _Page(html.render(report.model_copy(update={"artifacts": [broken]}))).text


def test_hostile_text_stays_text(report: Report) -> None:
    attack = "<script>alert(1)</script>"
    stage = report.stages[1].model_copy(
        update={
            "name": attack,
            "details": Details(
                facts={attack: attack},
                tables=(
                    Table.of(
                        attack,
                        [{"layer": f"{attack}.{i}.x", "output_error": i} for i in range(3)],
                        charted={"output_error": ""},
                    ),
                    Table.of("rows", [{attack: attack}]),
                ),
                galleries=(
                    Gallery(attack, (attack,), (Pictures(attack, (f'data:image/"{attack}',)),)),
                ),
                studies=(StudyReport(name=attack, note=attack, figures=report.final),),
            ),
        }
    )
    hostile = report.model_copy(
        update={"model": {"name": attack}, "stages": [stage], "warnings": [attack]}
    )
    page = html.render(hostile)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_layers_become_a_table_and_a_chart(report: Report) -> None:
    page = html.render(report)
    parsed = _Page(page)
    assert parsed.seen.count("svg") == 2  # with that of all stages
    assert parsed.seen.count("rect") == 12
    assert page.count('<i class="bar">') == 24  # two columns of error, twelve layers
    assert "<title>2 fc2: 0.0330</title>" in page
    assert "Table: layers (12)" in parsed.text
    assert parsed.seen.count("img") == 1
    assert "simulated.top1 80.5" in parsed.text
    assert "blocks.1.attn.proj 8 static – 0.00400 0.0210" in parsed.text


@pytest.mark.parametrize(
    "table",
    [
        Table("empty", (), ()),
        Table.of("lacking", [{}, {"": ""}]),
        Table.of("names", [{"layer": None, "bits": 1}, {"layer": 2, "bits": "all"}], {"bits": ""}),
        Table.of("small", [{"l": "a", "error": -1e-9}, {"l": "b", "error": 0}], {"error": ""}),
        Table.of("tiny", [{"l": i, "error": i * 5e-324} for i in range(2)], {"error": ""}),
        Table.of(
            "many",
            [{"l": f"b.{i}.l{j}", "bits": j} for i in range(60) for j in range(9)],
            {"bits": ""},
        ),
    ],
)
def test_any_table_renders(report: Report, table: Table) -> None:
    stage = report.stages[0].model_copy(update={"details": Details(tables=(table,))})
    text = _Page(html.render(report.model_copy(update={"stages": [stage]}))).text
    assert "None" not in text
    text = _Page(html.sensitivity_page("model", {"stage": table})).text
    assert "None" not in text


def test_bars_have_the_height_of_their_values() -> None:
    chart = Chart("x", ["0", "1"], {"a": [1.0, -2.0], "b": [None, 4.0]}, Column("x"))
    root = ElementTree.fromstring(str(svg.bars(chart)))
    heights = [float(bar.get("height", "0")) for bar in root.iter("rect")]
    assert len(heights) == 3
    assert heights[1] / heights[0] == 2
    assert heights[2] / heights[0] == 4
    assert all(0 <= float(bar.get("y", "-1")) <= svg.HEIGHT for bar in root.iter("rect"))
