"""Compare output folders with what one would pick instead, on the same images in the same run.

    python tests/benchmarks/peers.py MODEL OUT [OUT ...] --calibration DIR --evaluation DIR \
        --classes FILE

Peers are the fp32 export in onnxruntime and in OpenVINO, which takes bfloat16 by itself where the
processor has it, onnxruntime's quantizers, and NNCF's for OpenVINO. Our files run in the runtime
that they were exported for, and exported once more in the other. All are timed in turns; figures
and speed-ups are against the fp32 export in onnxruntime. What is not installed, or cannot be
exported, stands below the table. Without `--evaluation`, which random weights do not need, files
are timed only.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import Key, beside, size, timed
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader

from vitcompress import processor, targets
from vitcompress.console import console
from vitcompress.data.images import batches, open_images
from vitcompress.errors import InputError
from vitcompress.evaluation import judge
from vitcompress.export.folder import load_folder
from vitcompress.export.onnx import TARGET, export_onnx, metadata
from vitcompress.measure.runtime import Timing, logits
from vitcompress.model.architecture import VitModel, from_source
from vitcompress.report.figures import shown
from vitcompress.report.model import Metrics

RUNTIMES = "onnxruntime", "openvino"
BASELINE = "fp32", "onnxruntime"
# Left to itself, quantize_dynamic makes an invalid node of the standard Attention operator.
LINEARS = ["MatMul", "Gemm"]
SAMPLE = 64  # images that peers calibrate on


@dataclass(frozen=True)
class Given:
    """What peers are made of: the dense model in each runtime's form, and calibration images."""

    fp32: Path
    plain: Path
    """In the operators that OpenVINO reads."""
    images: Sequence[np.ndarray]


class Reader(CalibrationDataReader):
    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = iter(arrays)

    def get_next(self) -> dict[str, np.ndarray] | None:
        array = next(self.arrays, None)
        return None if array is None else {"pixels": array}


def dynamic(given: Given, file: Path) -> Path:
    quantize_dynamic(given.fp32, file, LINEARS, per_channel=True, weight_type=QuantType.QInt8)
    return file


def static(given: Given, file: Path) -> Path:
    quantize_static(
        given.fp32, file, Reader(given.images), op_types_to_quantize=LINEARS, per_channel=True
    )
    return file


def nncf_int8(given: Given, file: Path) -> Path:
    import nncf
    import openvino

    quantized = nncf.quantize(
        openvino.Core().read_model(given.plain),
        nncf.Dataset(given.images),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(given.images),
    )
    openvino.save_model(quantized, file.with_suffix(".xml"), compress_to_fp16=False)
    return file.with_suffix(".xml")


PEERS: dict[Key, Callable[[Given, Path], Path]] = {
    BASELINE: lambda given, _: given.fp32,
    ("fp32", "openvino"): lambda given, _: given.plain,
    ("quantize_dynamic, per channel", "onnxruntime"): dynamic,
    ("quantize_static, per channel", "onnxruntime"): static,
    ("NNCF int8", "openvino"): nncf_int8,
}


def ours(out: Path, runtime: str, file: Path) -> Path:
    """The model of an output folder for a runtime: the file that lies there, or a new one."""
    there = out / "model.onnx"
    if metadata(there).get(TARGET, targets.DEFAULT) == runtime:
        return there
    export_onnx(load_folder(out), file, {}, runtime)
    return file


def files(given: Given, outs: list[Path], folder: Path) -> tuple[dict[Key, Path], dict[Key, str]]:
    """All files, and why others are missing."""
    made, missing = dict[Key, Path](), dict[Key, str]()
    makers: dict[Key, Callable[[Path], Path]] = {
        **{key: partial(make, given) for key, make in PEERS.items()},
        **{
            (out.name, runtime): partial(ours, out, runtime) for out in outs for runtime in RUNTIMES
        },
    }
    for number, (key, make) in enumerate(makers.items()):
        try:
            targets.load_target(key[1])
            made[key] = make(folder / f"{number}.onnx")
        except (InputError, ImportError) as error:
            missing[key] = str(error)
    return made, missing


def judged(dense: VitModel, made: dict[Key, Path], given: argparse.Namespace) -> dict[Key, Metrics]:
    """The figures of all files on the evaluation images."""
    images = open_images(
        given.evaluation, classes=given.classes, labelled=bool(given.classes), limit=given.limit
    )
    found = {}
    for key, file in made.items():
        held = targets.load_target(key[1]).session(file, 0)
        run = partial(_one_by_one, held)
        found[key] = judge(run, images, dense.preprocess, 0.01, " in ".join(key))
    return {key: each.figures(dense.task, found[BASELINE]) for key, each in found.items()}


def _one_by_one(held: targets.Session, pixels: np.ndarray) -> np.ndarray:
    return next(logits(held, [pixels]))


def markdown(
    made: dict[Key, Path], figures: dict[Key, Metrics], times: dict[int, dict[Key, Timing]]
) -> Iterator[str]:
    columns = shown(figures.values())
    batch = [f"batch {count}" for count in times]
    yield f"| | {' | '.join(['runtime', *(c.label for c in columns), 'file', *batch])} |"
    yield "|---" * (3 + len(columns) + len(batch)) + "|"
    for key, file in made.items():
        cells = [*key, *(column.text(column.read(figures[key])) for column in columns)]
        cells.append(f"{size(file) / 1e6:.2f} MB")
        cells += [beside(found[key], found[BASELINE]) for found in times.values()]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("outs", type=Path, nargs="+", metavar="OUT")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation")
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--limit", type=int, help="images to evaluate on")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sizes to time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5, help="to time a file")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    first = load_folder(given.outs[0])
    spec, architecture = first.preprocess, first.architecture
    dense = from_source(
        given.model, architecture.timm, architecture.options, None, spec.model_dump()
    )
    sample = open_images(given.calibration, labelled=False, limit=SAMPLE, seed=0)
    arrays = [batch.pixels.numpy() for batch in batches(sample, spec, 1)]
    with TemporaryDirectory() as place:
        folder = Path(place)
        prepared = Given(folder / "fp32.onnx", folder / "plain.onnx", arrays)
        export_onnx(dense, prepared.fp32, {})
        export_onnx(dense, prepared.plain, {}, "portable")
        made, missing = files(prepared, given.outs, folder)
        figures = judged(dense, made, given) if given.evaluation else dict.fromkeys(made, Metrics())
        times = {
            count: timed(made, np.repeat(arrays[0], count, 0), given.threads, given.seconds)
            for count in given.batches
        }
        console.print("\n".join(markdown(made, figures, times)), soft_wrap=True, markup=False)
    for key, why in missing.items():
        console.print(f"{' in '.join(key)}: {why}", soft_wrap=True, markup=False)
    threads = f"{given.threads} thread(s)"
    console.print(f"{processor.name()}: {processor.instructions()}; {threads}", markup=False)


if __name__ == "__main__":
    main()
