"""What becomes of exported files in the runtimes that they are for: a Markdown table.

    python tests/benchmarks/runtimes.py --environments DIR

Each target's lowest and newest version, and other runtimes that read its files, run models of all
kinds, made of a deit_tiny whose weights are drawn, in an environment of their own, which is made in
DIR with pip or npm unless it is given: `--given onnxruntime==1.24.* FOLDER`. A cell tells how many
quantized layers became integer kernels (where that can be asked), and how many times faster the
file is than the float file of the dense model in the same runtime, timed in turns on one thread; ✗
and the number of a line below, that the target refuses the model in that version on this processor,
the runtime the file, or that it gives other logits than torch. What cannot be installed is told
below the table.
"""

import argparse
import logging
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping
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
from vitcompress.console import say
from vitcompress.errors import InputError, ParityError
from vitcompress.export.onnx import export_onnx
from vitcompress.export.parity import compare
from vitcompress.model.architecture import QuantizedLayer, VitModel
from vitcompress.targets.onnxruntime import OnnxRuntime, fused_kernels
from vitcompress.targets.openvino import OpenVino
from vitcompress.targets.openvino.products import products

ALSO = {"portable": ("openvino", "onnxruntime-node", "onnxruntime-web")}
"""By target, the runtimes besides its own that read its files."""
NAME = "deit_tiny_patch16_224"
PIXELS = 224
IMAGES = 4
FLOAT = "float"  # the kind that others are compared with

Limits = Callable[[Mapping[str, QuantizedLayer]], None]
LIMITED: Mapping[str, Callable[..., targets.Target]] = {
    "onnxruntime": OnnxRuntime,
    "onnxruntime-node": OnnxRuntime,
    "openvino": OpenVino,
}
"""By package, the target that knows what it does not compute right on some processors."""


@dataclass
class Files:
    """The models of all kinds, and what they are exported to, by target and kind."""

    folder: Path
    models: dict[str, VitModel] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, target: str) -> dict[str, Path]:
        """The files for a target, by kind, without those that it refuses."""
        found = {}
        for kind, make in KINDS.items():
            if kind not in self.models:
                self.models[kind] = make(drawn(NAME, {}, PIXELS))
            file = self.folder / f"{target}-{kind.replace(':', 'of')}.onnx"
            try:
                if not file.exists() and (target, kind) not in self.refused:
                    export_onnx(self.models[kind], file, {}, target)
            except InputError as error:
                self.refused[target, kind] = _bare(error)
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
    layers = model.anatomy.quantized()
    scales = [f"{name}.scale" for name, q in layers.items() if q.activations != "float"]
    if "optimized" in facts:
        found = fused_kernels(Path(facts["optimized"]), scales)
    elif "integer_nodes" in facts:
        found = products(file, facts["integer_nodes"], scales)
    else:
        return None
    return f"{sum(count > 0 for count in found.values())}/{len(scales)}" if scales else None


def fault(
    model: VitModel, file: Path, facts: dict[str, Any], pixels: torch.Tensor, limits: Limits
) -> str | None:
    """Why a file is of no use in a runtime; None where it gives what torch gives."""
    if "error" in facts:
        return "does not load: " + " ".join(facts["error"].split())[:150]
    try:
        limits(model.architecture.quantized)
        compare(file, model, pixels, np.array(facts["outputs"], np.float32), "the runtime")
    except InputError as error:
        return _bare(error)
    except ParityError as error:
        return str(error).partition(": ")[2]
    return None


def _bare(error: InputError) -> str:
    return str(error).removeprefix("export.target: ")


def limits_of(package: str, version: str) -> Limits:
    """What raises `InputError` for layers that a runtime does not compute right on this processor,
    as far as that is known."""
    kind = LIMITED.get(package)
    known = kind is not None and kind().version is not None
    return kind(version=version).check_layers if known else lambda layers: None


def tried(where: Environment, file: Path, pixels: torch.Tensor) -> dict[str, Any]:
    """What a runtime makes of one file, in a process that it may abort."""
    try:
        found: dict[str, Any] = ask(where, check=({"file": file}, pixels.numpy()))["check"]["file"]
    except subprocess.CalledProcessError as error:
        return {"error": _ended(error)}
    return found


def _ended(error: subprocess.CalledProcessError) -> str:
    return f"the process ended with {error.returncode}: {error.stderr.strip()}"


def speeds(where: Environment, files: dict[str, Path], seconds: float) -> dict[str, str]:
    """How many times as fast as the float file each file is; of that, its time."""
    if not seconds or FLOAT not in files:
        return {}
    one = np.random.default_rng(0).normal(size=(1, 3, PIXELS, PIXELS))
    times = ask(where, time=(files, one), seconds=seconds)["time"]
    middle = {kind: statistics.median(taken) for kind, taken in times.items()}
    ratios = {kind: f"{middle[FLOAT] / each:.2f}×" for kind, each in middle.items()}
    return {**ratios, FLOAT: f"{middle[FLOAT]:.1f} ms"}


def row(target: str, where: Environment, version: str, files: Files, seconds: float) -> Row:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(IMAGES, 3, PIXELS, PIXELS, generator=generator)
    limits, usable, told = limits_of(where.package, version), dict[str, Path](), dict[str, str]()
    there = files.of(target)
    faults = {kind: why for (of, kind), why in files.refused.items() if of == target}
    for kind, file in there.items():
        facts, model = tried(where, file, pixels), files.models[kind]
        if (why := fault(model, file, facts, pixels, limits)) is not None:
            faults[kind] = why
        if "error" not in facts:
            usable[kind], told[kind] = file, fused(model, file, facts) or ""
    times = speeds(where, usable, seconds)
    cells = {kind: " · ".join(filter(None, (told[kind], times.get(kind)))) for kind in usable}
    return Row(target, f"{where.package} {version}", cells, faults)


def rows(given: argparse.Namespace, folder: Path) -> Iterator[Row | str]:
    """Rows, and in words what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(folder)
    known = {requirement: Path(place) for requirement, place in given.given}
    for name in given.targets:
        try:
            target, seen = targets.load_target(name), set[tuple[str, str]]()
        except InputError as error:
            yield _bare(error)
            continue
        for requirement in requirements(target):
            try:
                where = environment(requirement, known, given.environments)
                version = str(ask(where)["version"])
                if (where.package, version) not in seen:
                    yield row(name, where, version, files, given.seconds)
                seen.add((where.package, version))
            except subprocess.CalledProcessError as error:
                yield f"`{name}` in {requirement}: {_ended(error)}"
            except FileNotFoundError as error:
                yield f"`{name}` in {requirement}: there is no {error.filename}"


def markdown(found: list[Row], missing: list[str]) -> Iterator[str]:
    """The table; faults that are alike have one line below it."""
    lines = list(dict.fromkeys(why for each in found for why in each.faults.values()))
    yield f"| target | runtime | {' | '.join(KINDS)} |"
    yield "|---" * (2 + len(KINDS)) + "|"
    for each in found:
        cells = {kind: cell or "✓" for kind, cell in each.cells.items()}
        for kind, why in each.faults.items():
            cells[kind] = f"✗ ({lines.index(why) + 1}) {each.cells.get(kind, '')}".strip()
        yield f"| `{each.target}` | {each.runtime} | {' | '.join(cells[kind] for kind in KINDS)} |"
    yield ""
    for number, why in enumerate(lines, 1):
        yield f"({number}) {why}"
    yield from (f"missing: {why}" for why in missing)


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
        found, missing = list[Row](), list[str]()
        for each in rows(given, given.files or Path(place)):
            say(str(each))
            if isinstance(each, Row):
                found.append(each)
            else:
                missing.append(each)
    print("\n".join(markdown(found, missing)))  # noqa: T201
    print(f"\n{processor.name()}: {processor.instructions()}")  # noqa: T201


if __name__ == "__main__":
    main()
