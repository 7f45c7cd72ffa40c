"""What becomes of exported files in the runtimes that they are for: a Markdown table.

    python tests/benchmarks/runtimes.py --environments DIR

Each target's lowest and newest version, and other runtimes that read its files, run models of all
kinds in an environment of their own, which is made in DIR with pip or npm unless it is given:
`--given onnxruntime==1.24.* FOLDER`. A cell tells how many quantized layers became integer kernels
(where that can be asked), and how many times faster the file is than the float file of the dense
model in the same runtime, timed in turns on one thread; ✗ and the number of a line below, that the
target refuses the model, the runtime the file, or that it gives other logits than torch.

Layers and logits are those of small models, speeds those of the shape of deit_tiny.
"""

import argparse
import logging
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import drawn
from environments import Environment, ask, environment
from kinds import KINDS
from packaging.requirements import Requirement

from vitcompress import processor, registry, targets
from vitcompress.console import console
from vitcompress.errors import InputError, ParityError
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import compare
from vitcompress.model.architecture import VitModel
from vitcompress.targets.onnxruntime import fused_kernels
from vitcompress.targets.openvino.products import products

ALSO = {"portable": ("openvino", "onnxruntime-node", "onnxruntime-web")}
"""By target, the runtimes besides its own that read its files."""
NAME = "deit_tiny_patch16_224"
SMALL: dict[str, Any] = {
    **{"img_size": 32, "patch_size": 8, "embed_dim": 96},
    **{"depth": 3, "num_heads": 3, "num_classes": 10},
}
IMAGES = 8
FLOAT = "float"  # the kind that others are compared with


@dataclass
class Files:
    """The models of all kinds in one shape, and what they are exported to, by target and kind."""

    options: dict[str, Any]
    folder: Path
    models: dict[str, VitModel] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, target: str) -> dict[str, Path]:
        """The files for a target, by kind, without those that it refuses."""
        found = {}
        for kind, make in KINDS.items():
            if kind not in self.models:
                self.models[kind] = make(
                    drawn(NAME, self.options, self.options.get("img_size", 224))
                )
            file = self.folder / f"{target}-{kind.replace(':', 'of')}.onnx"
            try:
                if not file.exists() and (target, kind) not in self.refused:
                    export_onnx(self.models[kind], file, {}, target)
            except InputError as error:
                self.refused[target, kind] = str(error)
            if file.exists():
                found[kind] = file
        return found


@dataclass(frozen=True)
class Row:
    """What one version of one runtime makes of the files of a target: cells and faults by kind."""

    target: str
    runtime: str
    cells: dict[str, str]
    faults: dict[str, str]


def requirements(target: targets.Target) -> tuple[str, ...]:
    """The runtimes that files of a target are tried in: the lowest version, the newest, others."""
    needed = Requirement(target.requirement)
    (lowest,) = (each.version for each in needed.specifier)
    return f"{needed.name}=={lowest}.*", needed.name, *ALSO.get(target.name, ())


def fused(model: VitModel, file: Path, facts: dict[str, Any]) -> str | None:
    """How many of the quantized layers are integer kernels; None where that cannot be asked."""
    scales = [f"{name}.scale" for name in model.anatomy.quantized()]
    if "optimized" in facts:
        found = fused_kernels(Path(facts["optimized"]), scales)
    elif "integer_nodes" in facts:
        found = products(file, facts["integer_nodes"], scales)
    else:
        return None
    return f"{sum(count > 0 for count in found.values())}/{len(scales)}" if scales else None


def fault(model: VitModel, file: Path, facts: dict[str, Any], pixels: torch.Tensor) -> str | None:
    """Why a file is of no use in a runtime; None where it gives what torch gives."""
    if "error" in facts:
        return "does not load: " + " ".join(facts["error"].split())[:150]
    try:
        compare(file, model, pixels, np.array(facts["outputs"], np.float32), "the runtime")
    except ParityError as error:
        return str(error).partition(": ")[2]
    return None


def tried(where: Environment, file: Path, pixels: torch.Tensor) -> dict[str, Any]:
    """What a runtime makes of one file, in a process that it may abort."""
    try:
        found: dict[str, Any] = ask(where, check=({"file": file}, pixels.numpy()))["check"]["file"]
    except subprocess.CalledProcessError as error:
        return {"error": f"the process ended with {error.returncode}: {error.stderr.strip()}"}
    return found


def row(target: str, where: Environment, small: Files, large: Files, seconds: float) -> Row:
    pixels = torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    files = small.of(target)
    answers = {kind: tried(where, file, pixels) for kind, file in files.items()}
    faults = {kind: why for (of, kind), why in small.refused.items() if of == target}
    layers = {}
    for kind, file in files.items():
        facts, model = answers[kind], small.models[kind]
        if (why := fault(model, file, facts, pixels)) is not None:
            faults[kind] = why
        layers[kind] = None if "error" in facts else fused(model, file, facts)
    speeds = dict.fromkeys(files, "")
    if seconds:
        usable = {
            kind: file
            for kind, file in large.of(target).items()
            if kind in files and "error" not in answers[kind]
        }
        one = np.random.default_rng(0).normal(size=(1, 3, 224, 224))
        times = ask(where, time=(usable, one), seconds=seconds)["time"]
        middle = {kind: statistics.median(taken) for kind, taken in times.items()}
        speeds |= {kind: f"{middle[FLOAT] / each:.2f}×" for kind, each in middle.items()}
    cells = {
        kind: " · ".join(filter(None, (layers.get(kind), speeds.get(kind)))) or "✓"
        for kind in KINDS
        if kind not in small.refused and kind in files
    }
    return Row(target, f"{where.package} {ask(where)['version']}", cells, faults)


def rows(given: argparse.Namespace, folder: Path) -> Iterator[Row]:
    small, large = Files(SMALL, folder / "small"), Files({}, folder / "large")
    for files in (small, large):
        files.folder.mkdir(parents=True, exist_ok=True)
    known = {requirement: Path(place) for requirement, place in given.given}
    for name in given.targets:
        target, seen = targets.load_target(name), set[tuple[str, str]]()
        for requirement in requirements(target):
            where = environment(requirement, known, given.environments)
            version = where.package, str(ask(where)["version"])
            if version not in seen:
                yield row(name, where, small, large, given.seconds)
            seen.add(version)


def markdown(found: list[Row]) -> Iterator[str]:
    """The table; faults that are alike have one line below it."""
    lines = list(dict.fromkeys(why for each in found for why in each.faults.values()))
    yield f"| target | runtime | {' | '.join(KINDS)} |"
    yield "|---" * (2 + len(KINDS)) + "|"
    for each in found:
        cells = dict(each.cells)
        for kind, why in each.faults.items():
            cells[kind] = f"✗ ({lines.index(why) + 1}) {cells.get(kind, '').strip('✓')}".strip()
        yield f"| `{each.target}` | {each.runtime} | {' | '.join(cells[kind] for kind in KINDS)} |"
    yield ""
    for number, why in enumerate(lines, 1):
        yield f"({number}) {why}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environments", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--given", nargs=2, action="append", default=[], metavar=("REQUIREMENT", "FOLDER")
    )
    parser.add_argument(
        "--targets", nargs="+", default=registry.names(targets.__name__), metavar="NAME"
    )
    parser.add_argument("--seconds", type=float, default=5, help="to time a file; 0: no speeds")
    parser.add_argument("--files", type=Path, help="where exported files are kept for another time")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    with TemporaryDirectory() as place, torch.no_grad():
        found = []
        for each in rows(given, given.files or Path(place)):
            console.print(f"{each.target} in {each.runtime}: {each.cells} {each.faults}")
            found.append(each)
    print("\n".join(markdown(found)))  # noqa: T201
    print(f"\n{processor.name()}: {processor.instructions()}")  # noqa: T201


if __name__ == "__main__":
    main()
