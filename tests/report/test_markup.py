"""Names that are markup: whatever a report is told stays text in all its renderings."""

import ast
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from vitcompress.data.preprocess import Preprocess
from vitcompress.errors import InputError
from vitcompress.output import write_predict
from vitcompress.report import compare, html, junit, markdown
from vitcompress.report.model import ChangedAnswer, ChangedImage, Changes, ClassLoss, Report

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "a|b\n| c | d |",
    "`<script>`",
    "](javascript:alert(1))",
    "[x](javascript:alert(1)) ![y](https://example.org/z.png)",
    "</td></table><iframe>",
    "\n# Title\n\n* item\n\n    code",
)


class _Tags(HTMLParser):
    """Elements and their attributes; of addresses, the beginning."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kinds = (f"{k}={str(v)[:5]}" if k in ("src", "href") else k for k, v in attrs)
        self.seen.append((tag, tuple(kinds)))


@pytest.fixture
def everything(report: Report) -> Report:
    """With pictures of images that changed."""
    image = ChangedImage(
        image="a.png",
        picture="data:image/png;base64,AA",
        value=0.5,
        answer=ChangedAnswer(before="ant", after="bee", label="cat"),
    )
    told = Changes(
        images=9,
        changed=1,
        lost=1,
        gained=0,
        measure="kl",
        shown=(image,),
        classes=(ClassLoss(name="ant", images=3, before=3, after=2),),
    )
    return report.model_copy(update={"changes": told})


def places(value: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The ways to all texts in plain data."""
    if isinstance(value, str):
        yield way
    elif isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(each, (*way, key))


def attacked(report: Report, attack: str) -> Report:
    """With the attack behind each of its texts that takes it."""
    for way in places(json.loads(report.to_json())):
        held = inner = json.loads(report.to_json())
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] += attack
        try:
            report = Report.from_json(json.dumps(held))
        except InputError:  # it can only be one of a few words
            continue
    return report


@pytest.mark.parametrize("attack", ATTACKS)
def test_all_that_is_told_stays_text(everything: Report, attack: str) -> None:
    hostile = attacked(everything, attack)
    assert hostile.model["name"].endswith(attack)
    assert hostile.changes is not None
    assert hostile.changes.shown[0].image.endswith(attack)
    for render in (html.render, _compared):
        plain = set(_Tags(render(everything)).seen)
        assert set(_Tags(render(hostile)).seen) <= plain
    shown = MarkdownIt("commonmark", {"html": True}).enable("table")
    tags, others = (
        {tag for tag, _ in _Tags(shown.render(markdown.render(each))).seen}
        for each in (everything, hostile)
    )
    assert others <= tags
    assert "a" not in tags
    ElementTree.fromstring(junit.render(hostile))


def _compared(report: Report) -> str:
    return compare.render({report.model["name"]: compare.Run(report, {"a": report.model["name"]})})


@pytest.mark.parametrize("source", ["https://example.org/x.png", "javascript:alert(1)", "x.png"])
def test_pictures_are_in_the_report_itself(everything: Report, source: str) -> None:
    told = everything.to_json().replace("data:image/png;base64,AA", source)
    with pytest.raises(InputError, match="data:image"):
        Report.from_json(told)


@pytest.mark.parametrize("attack", [*ATTACKS, '"""\nimport os', '\\"""\nimport os'])
def test_what_predicts_runs_nothing_else(attack: str, tmp_path: Path) -> None:
    grey = (0.5, 0.5, 0.5)
    spec = Preprocess(
        input_size=(8, 8), mean=grey, std=grey, crop_pct=1, interpolation="bilinear"
    ).model_dump_json()

    def written(name: str) -> tuple[list[Any], list[str]]:
        facts = {"task": "classification", "class_names": json.dumps([name]), "quantization": "{}"}
        script, page = write_predict(tmp_path, name, {**facts, "preprocessing": spec})
        told, *code = ast.parse(script.read_text()).body
        assert isinstance(told, ast.Expr)
        return _Tags(page.read_text()).seen, [ast.dump(each) for each in code]

    assert written(attack) == written("plain")
