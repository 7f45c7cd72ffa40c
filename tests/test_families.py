"""What is known to work on which family is what `plan` says, and what runs."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.cli import Call
from vitcompress import support
from vitcompress.console import console

HERE = Path(__file__).parent
FAMILIES: dict[str, Any] = runpy.run_path(str(HERE / "benchmarks" / "families.py"))


@torch.no_grad()
def test_what_is_known_to_work_is_what_plan_says(tmp_path: Path) -> None:
    supported = FAMILIES["supported"]
    rows = [supported(model, FAMILIES["planned"], tmp_path) for model in FAMILIES["MODELS"]]
    assert tuple(rows) == support.known()  # else: python tests/benchmarks/families.py --write


def test_the_page_and_the_command_have_the_same_table(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (HERE.parent / "vitcompress" / "docs" / "families.md").read_text(encoding="utf-8")
    assert support.markdown(support.known()) in text
    listed = call("models", "--json").json
    assert listed["stages"] == [row.model_dump() for row in support.known()]
    assert {row["family"] for row in listed["stages"]} == set(listed["families"])
    monkeypatch.setenv("COLUMNS", "60")
    shown = call("models").stderr
    assert [line for line in support.lines(support.known()) if line not in shown] == []


@pytest.mark.slow
@pytest.mark.parametrize("model", FAMILIES["MODELS"])
def test_what_is_planned_is_carried_out(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "quiet", True)
    found = FAMILIES["supported"](model, FAMILIES["carried_out"], tmp_path)
    assert found in support.known()
