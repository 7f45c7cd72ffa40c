"""What session options of onnxruntime are worth for an exported file: a Markdown table.

    python tests/benchmarks/options.py FILE.onnx [--threads 1 2] [--batches 1 8]

Sessions run in turns; a ratio above 1 is faster than onnxruntime's defaults on as many threads.
Processor time tells what waiting threads burn.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from vitcompress import processor
from vitcompress.console import console
from vitcompress.measure.runtime import time_in_turns
from vitcompress.targets.onnxruntime import OrtSession, session_options

Change = Callable[[ort.SessionOptions], object]


def _entry(key: str, value: str) -> Change:
    return lambda options: options.add_session_config_entry(key, value)


OPTIONS: Mapping[str, Change] = {
    "as they are": lambda options: None,
    "`session.intra_op.allow_spinning` 0": _entry("session.intra_op.allow_spinning", "0"),
    "`session.set_denormal_as_zero` 1": _entry("session.set_denormal_as_zero", "1"),
    "`enable_cpu_mem_arena` off": lambda options: setattr(options, "enable_cpu_mem_arena", False),
    "`enable_mem_pattern` off": lambda options: setattr(options, "enable_mem_pattern", False),
}


def session(file: Path, threads: int, change: Change) -> OrtSession:
    options = session_options(threads)
    change(options)
    return OrtSession(ort.InferenceSession(str(file), options, ["CPUExecutionProvider"]))


def processor_time(held: OrtSession, pixels: np.ndarray, runs: int) -> float:
    """Milliseconds of all threads a run, with the pauses of a server between runs."""
    taken = 0.0
    for _ in range(runs):
        start = time.process_time()
        held.run(pixels)
        time.sleep(0.01)
        taken += time.process_time() - start
    return 1000 * taken / runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=5, help="to time a session")
    given = parser.parse_args()
    console.print("| threads | batch | options | p50 | ratio | processor time |", markup=False)
    console.print("|---|---|---|---|---|---|")
    for threads in given.threads:
        held = {name: session(given.file, threads, change) for name, change in OPTIONS.items()}
        shape = next(iter(held.values())).input_shape
        for batch in given.batches:
            drawn = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
            times = time_in_turns(held, drawn, given.seconds)
            first = next(iter(times.values())).p50
            for name, found in times.items():
                burnt = processor_time(held[name], drawn, 20)
                cells = f"{found.p50:.1f} ms | {first / found.p50:.2f} | {burnt:.1f} ms"
                console.print(f"| {threads} | {batch} | {name} | {cells} |", markup=False)
    console.print(f"{processor.name()}: {processor.instructions()}", markup=False)


if __name__ == "__main__":
    main()
