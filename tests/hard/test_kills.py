"""Runs that are killed: nothing is left of them, and those that go on end at the same bytes."""

import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from helpers.ending import Commands, Ended, commands
from vitcompress.place import MANIFEST

NAME = "vit_tiny_patch16_224"
OPTIONS = {"img_size": 48, "patch_size": 12, "embed_dim": 32, "depth": 2, "num_heads": 2}
HEAD = f"""
model: {{checkpoint: model.safetensors, name: {NAME}, options: {json.dumps(OPTIONS)}}}
data:
  {{calibration: "example:glyphs/calibration", evaluation: "example:glyphs/evaluation",
   mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], crop_pct: 1.0, images: 16}}
stages:
"""
PRUNE = """
  - {name: prune, type: prune, budget: {macs: 0.9}, saliency: magnitude, compensate: false,
     rotate: false}
"""
MERGE = "  - {name: merge, type: merge, budget: {macs: 0.55}, images: 8}\n"
SPARSE = '  - {name: sparse, type: sparsify, pattern: "2:4", layers: ["blocks.0.mlp.*"]}\n'
RECOVER = "  - {name: recover, type: recover, steps: 6, batch: 4}\n"
QUANT = """
  - {name: quant, type: quantize, bits: {average: 5, widths: [4, 6]}, layers: ["blocks.0.mlp.*"],
     rounding: nearest, residual: 0}
"""
CHOICES = """
search:
  images: 8
  choices:
    prune: [null, {budget: {macs: 0.9}}]
    quant: [{bits: 8}, {bits: 3}]
"""
GOAL = ("--minimize", "macs", "--max-kl", 10)
CHAINS: dict[str, tuple[str, tuple[object, ...]]] = {
    "merged": (PRUNE + MERGE + QUANT, ("run", "recipe.yaml", "--resume")),
    "recovered": (SPARSE + RECOVER + QUANT, ("run", "recipe.yaml", "--resume")),
    "search": (
        PRUNE + QUANT + CHOICES,
        ("search", "model.safetensors", "--recipe", "recipe.yaml", *GOAL),
    ),
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MOMENTS = 20  # of each signal, over all chains
TIMES = {
    "seconds",
    "load_seconds",
    "latency_ms",
    "speedup",
    "latency",
    "latency_ratio",
    "environment",
    "made",
}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands(tmp_path_factory.mktemp("memo")) as found:
        yield found


@pytest.fixture(scope="module")
def whole(
    command: Commands, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Ended]]:
    """A chain that nothing interrupts, by its name: where it ran, and how it ended."""
    done: dict[str, tuple[Path, Ended]] = {}

    def run(chain: str) -> tuple[Path, Ended]:
        if chain not in done:
            prepare(home := tmp_path_factory.mktemp("whole"), chain)
            ended = carry_out(command, home, chain)
            assert ended.code in (0, 1), ended.told
            done[chain] = home, carry_out(command, fresh(home, chain), chain)
        return done[chain]

    return run


def prepare(home: Path, chain: str) -> None:
    torch.manual_seed(0)
    module = timm.create_model(NAME, **OPTIONS, num_classes=33)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    save_file(module.state_dict(), home / "model.safetensors")
    (home / "recipe.yaml").write_text(HEAD + CHAINS[chain][0])


def carry_out(command: Commands, home: Path, chain: str, moment: int = 0, by: int = 0) -> Ended:
    arguments = (*CHAINS[chain][1], "--out", "out", "--limit", 16)
    return command(home, *arguments, moment=moment, by=by)


def fresh(beside: Path, chain: str) -> Path:
    home = beside.with_name(f"{beside.name}-again")
    home.mkdir()
    prepare(home, chain)
    return home


def left(home: Path) -> set[str]:
    """All that lies there, by its path."""
    return {str(path.relative_to(home)) for path in home.rglob("*")}


def settled(value: Any) -> Any:
    """What a report says, without what was timed."""
    if isinstance(value, dict):
        return {key: settled(each) for key, each in value.items() if key not in TIMES}
    return [settled(each) for each in value] if isinstance(value, list) else value


def content(home: Path) -> dict[str, Any]:
    """What was written, without what was timed."""
    found: dict[str, Any] = {}
    for path in sorted((home / "out").rglob("*")):
        name = str(path.relative_to(home))
        if path.suffix in (".onnx", ".safetensors", ".yaml", ".py") or path.name == "config.json":
            found[name] = path.read_bytes().replace(os.fsencode(home), b"HOME")
        elif path.name == "report.json":
            found[name] = settled(json.loads(path.read_text().replace(str(home), "HOME")))
        elif path.name == "search.json":
            told = json.loads(path.read_text())
            best = told["tried"][told["best"]]
            found[name] = settled(best), sorted(map(json.dumps, settled(told["tried"])))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("by", SIGNALS, ids=lambda by: by.name)
@pytest.mark.parametrize(
    ("number", "chain"),
    [
        pytest.param(n, c, id=f"{n}-{c}")
        for n, c in zip(range(MOMENTS), cycle(CHAINS), strict=False)
    ],
)
def test_a_killed_run_leaves_nothing_and_goes_on_to_the_same_bytes(
    number: int,
    chain: str,
    by: signal.Signals,
    command: Commands,
    whole: Callable[[str], tuple[Path, Ended]],
    tmp_path: Path,
) -> None:
    uninterrupted, reference = whole(chain)
    moment = random.Random(f"{number} {by.name}").randint(1, reference.events)
    home = tmp_path / "home"
    home.mkdir()
    prepare(home, chain)
    killed = carry_out(command, home, chain, moment, by)
    if by == signal.SIGKILL:
        assert killed.code == -by
    else:
        assert killed.code == 130, killed.told
        assert killed.told.splitlines()[-1].startswith("interrupted: "), killed.told
        assert "Traceback" not in killed.told
        assert unfinished(home) == []
    resumed = carry_out(command, home, chain)
    assert resumed.code == reference.code, resumed.told
    assert left(home) == left(uninterrupted)
    assert unfinished(home) == []
    assert content(home) == content(uninterrupted)
    share = resumed.seconds / reference.seconds
    at = f"{moment} of {reference.events} events"
    print(f"\n{chain}, {by.name} at {at}: {share:.0%} of the whole again", flush=True)  # noqa: T201


def unfinished(home: Path) -> list[str]:
    """What is hidden, temporary or half written there."""
    temporary = [name for name in left(home) if name.startswith(("temporary/", "out/.", "."))]
    parts = [name for name in left(home) if re.search(r"vitcompress-|\.partial|\.rename$", name)]
    outputs = [path for path in (home / "out", home / "out" / "best") if path.is_dir()]
    halves = [str(o) for o in outputs if any(o.glob("*.onnx")) and not (o / MANIFEST).exists()]
    return [*temporary, *parts, *halves]


@pytest.mark.slow
def test_what_nothing_interrupts_is_the_same_again(
    command: Commands, whole: Callable[[str], tuple[Path, Ended]]
) -> None:
    for chain in CHAINS:
        home, _ = whole(chain)
        again = home.with_name(f"{home.name}-again")
        assert content(again) == content(home)
        assert left(again) == left(home)
        assert unfinished(home) == []
