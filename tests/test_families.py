"""The README's table of what works on which family is what `plan` says, and what runs."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcompress.console import console

HERE = Path(__file__).parent
FAMILIES: dict[str, Any] = runpy.run_path(str(HERE / "benchmarks" / "families.py"))


@torch.no_grad()
def test_the_table_of_the_readme_is_what_plan_says(tmp_path: Path) -> None:
    text = (HERE.parent / "README.md").read_text(encoding="utf-8")
    assert FAMILIES["table"](FAMILIES["planned"], tmp_path) in text


@pytest.mark.slow
@pytest.mark.parametrize("model", FAMILIES["MODELS"])
def test_what_is_planned_is_carried_out(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "quiet", True)
    cells = FAMILIES["cells"]
    found = list(cells(model, FAMILIES["carried_out"], tmp_path))
    assert found == list(cells(model, FAMILIES["planned"], tmp_path))
