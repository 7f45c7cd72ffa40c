"""Compare an output folder with onnxruntime's own quantizers, on the same images in the same run.

    python tests/benchmarks/rivals.py OUT MODEL --evaluation DIR --classes FILE --calibration DIR

Prints a Markdown table. All files are timed in turns; agreement is with the fp32 export of MODEL.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader

from vitcompress import targets
from vitcompress.console import console
from vitcompress.data.images import batches, open_images
from vitcompress.evaluation import judge
from vitcompress.export.folder import load_folder
from vitcompress.export.onnx import export_onnx
from vitcompress.measure.runtime import logits, time_in_turns
from vitcompress.model.architecture import from_source

# Left to itself, quantize_dynamic makes an invalid node of the standard Attention operator.
LINEARS = ["MatMul", "Gemm"]


class Reader(CalibrationDataReader):
    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = iter(arrays)

    def get_next(self) -> dict[str, np.ndarray] | None:
        array = next(self.arrays, None)
        return None if array is None else {"pixels": array}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("model")
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--calibration")
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    ours = load_folder(given.out)
    spec = ours.preprocess
    facts = {"crop_pct": spec.crop_pct, "interpolation": spec.interpolation}
    dense = from_source(given.model, None, {}, None, {**facts, "mean": spec.mean, "std": spec.std})
    images = open_images(given.evaluation, classes=given.classes, labelled=True, limit=given.limit)
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder) / "fp32.onnx"
        export_onnx(dense, fp32, {})
        files = {"fp32": fp32, "vitcompress": given.out / "model.onnx"}
        dynamic = files["onnxruntime quantize_dynamic, per channel"] = Path(folder) / "d.onnx"
        quantize_dynamic(fp32, dynamic, LINEARS, per_channel=True, weight_type=QuantType.QInt8)
        if given.calibration:
            sample = open_images(given.calibration, labelled=False, limit=64, seed=0)
            arrays = [b.pixels.numpy() for b in batches(sample, spec, 1)]
            static = files["onnxruntime quantize_static, per channel"] = Path(folder) / "s.onnx"
            quantize_static(
                fp32, static, Reader(arrays), op_types_to_quantize=LINEARS, per_channel=True
            )
        judged = {}
        for name, file in files.items():
            held = targets.load_target(targets.DEFAULT).session(file, 0)
            judged[name] = judge(
                lambda pixels, held=held: next(logits(held, [pixels])), images, spec, 0.01, name
            )
        pixels = next(batches(images.subset([0]), spec, 1)).pixels.numpy()
        runtime = targets.load_target(targets.DEFAULT)
        timed = time_in_turns({n: runtime.session(f, 1) for n, f in files.items()}, pixels)
        rows = [
            "| | top-1 | agreement | KL | file | p50 | speed-up |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, file in files.items():
            found = judged[name].figures(dense.task, judged["fp32"])
            p50, size = timed[name].p50, file.stat().st_size / 1e6
            rows.append(
                f"| {name} | {found.top1:.1f} | {found.agreement:.1f} | {found.kl:.4f} "
                f"| {size:.2f} MB | {p50:.1f} ms | {timed['fp32'].p50 / p50:.2f}× |"
            )
    console.print("\n".join(rows), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
