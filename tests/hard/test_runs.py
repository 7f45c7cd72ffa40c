"""Output folders that somebody has damaged, and the commands that are given them."""

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitcompress
from helpers.hard import command, counted, damaged, each, mutated, outcome
from helpers.pictures import png
from helpers.reports import full_report
from helpers.runs import write_run
from vitcompress import gates
from vitcompress.export.folder import CONFIG
from vitcompress.model.architecture import VitModel
from vitcompress.output import ONNX
from vitcompress.place import MANIFEST
from vitcompress.recipe_gates import Gates
from vitcompress.report import compare, html, junit, markdown, terminal
from vitcompress.report.model import Metrics, Report
from vitcompress.tasks import chosen

pytestmark = pytest.mark.filterwarnings("ignore")  # as the command line has it

PLAIN = (CONFIG, MANIFEST, "report.json")


@pytest.fixture(scope="module")
def whole(make_vit: Callable[..., VitModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run writes."""
    return write_run(make_vit(depth=1), tmp_path_factory.mktemp("run") / "out")


def spoil(file: Path, whole: Path, chance: random.Random) -> None:
    """Make of `file` what it should not be."""
    content, act = whole.read_bytes(), chance.random()
    if act < 0.1:
        file.unlink()
    elif act < 0.15:
        file.unlink()
        file.symlink_to(chance.choice(["/dev/zero", "/proc/self/mem", file.name, "/"]))
    elif act < 0.2:
        file.unlink()
        file.mkdir()
    elif act < 0.75 and file.name in PLAIN:
        held = mutated(json.loads(content), chance)
        file.write_text(json.dumps(held, default=str, skipkeys=True), "utf-8", "replace")
    elif act < 0.9 and file.suffix in (".onnx", ".safetensors"):
        start = content[:3000]
        file.write_bytes(damaged(start, chance) + content[3000:])
    else:
        file.write_bytes(damaged(content, chance))


@counted(6)
def test_folders(rows: range, whole: Path, tmp_path: Path) -> None:
    image, images = tmp_path / "1.png", tmp_path / "i.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    image.write_bytes(png(pixels[0]))
    np.savez(images, images=pixels, labels=np.arange(3))
    home, names = tmp_path / "out", sorted(file.name for file in whole.iterdir())

    def case(chance: random.Random) -> None:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(whole, home)
        for name in {chance.choice([*PLAIN, ONNX, *names]) for _ in range(chance.randint(1, 2))}:
            spoil(home / name, whole / name, chance)
        outcome(partial(vitcompress.load, home))
        command("inspect", home, "--quiet")
        command("compare", home, whole, "--quiet", "--out", tmp_path / "page.html")
        command("predict", home, image, "--quiet")
        command("eval", home, "--evaluation", images, "--quiet")

    each(rows, "folders", case)


def told(text: str) -> None:
    """All that is done with a report that somebody else has written."""
    report, own = Report.from_json(text), full_report()
    for render in (markdown.render, html.render, junit.render, terminal.summary):
        render(report)
    runs = {name: compare.Run(each, {}) for name, each in (("a", report), ("b", own))}
    terminal.comparison({name: run.report for name, run in runs.items()}, 80)
    compare.render(runs)
    limits = gates.applying(Gates(), chosen("classification", 10), report)
    gates.gate_results(limits, own.baseline, own.final, report)
    gates.unlike(report, Metrics())


@counted(5)
def test_reports(rows: range) -> None:
    held: dict[str, Any] = json.loads(full_report().to_json())

    def case(chance: random.Random) -> None:
        changed: Any = held
        for _ in range(chance.randint(1, 2)):
            changed = mutated(changed, chance)
        text = json.dumps(changed, default=str, skipkeys=True)
        if chance.random() < 0.2:
            text = damaged(text.encode(), chance).decode("utf-8", "replace")
        outcome(partial(told, text))

    each(rows, "reports", case)
