"""Run ONNX files in the runtime of the environment that this is started in.

    python in_python.py REQUEST.json

Needs the runtime and numpy only; `environments.ask` tells what it is asked, and what it answers.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]
Facts = dict[str, object]


def in_onnxruntime(file: str, request: dict, checked: bool) -> tuple[Run, Facts]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    version = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    if request["precise"] and version >= (1, 30):
        options.add_session_config_entry("session.x64quantprecision", "1")
    facts: Facts = {}
    if checked:
        facts["optimized"] = options.optimized_model_filepath = f"{file}.optimized"
    held = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = held.get_inputs()[0].name
    return lambda pixels: held.run(None, {name: pixels})[0], facts


def in_openvino(file: str, request: dict, checked: bool) -> tuple[Run, Facts]:
    import openvino

    options: Facts = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    if checked:
        options["INFERENCE_PRECISION_HINT"] = "f32"
    core = openvino.Core()
    held = core.compile_model(core.read_model(file), "CPU", options)
    kernels = [kernel.get_rt_info() for kernel in held.get_runtime_model().get_ops()]
    integer = [
        name
        for facts in kernels
        if facts["primitiveType"].astype(str).lower().endswith("_i8")
        for name in facts["originalLayersNames"].astype(str).split(",")
    ]
    return lambda pixels: held(pixels)[0], {"integer_nodes": integer}


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def pixels_of(part: dict) -> np.ndarray:
    return np.fromfile(part["pixels"], np.float32).reshape(part["shape"])


def checked(request: dict) -> dict[str, Facts]:
    """By file, the outputs and what became of it, or why it cannot be run."""
    found: dict[str, Facts] = {}
    pixels, load = pixels_of(request["check"]), RUNTIMES[request["package"]]
    for name, file in request["check"]["files"].items():
        try:
            run, facts = load(file, request, True)
            found[name] = {**facts, "outputs": run(pixels).tolist()}
        except Exception as error:  # runtimes raise almost anything
            found[name] = {"error": str(error)}
    return found


def timed(request: dict) -> dict[str, list[float]]:
    """By file, milliseconds of runs in turns."""
    part, load = request["time"], RUNTIMES[request["package"]]
    pixels = pixels_of(part)
    held = {name: load(file, request, False)[0] for name, file in part["files"].items()}
    taken: dict[str, list[float]] = {name: [] for name in held}
    end = time.monotonic() + part["seconds"] * len(held)
    for turn in range(10_000):
        for name, run in held.items():
            start = time.perf_counter()
            run(pixels)
            if turn >= part["warm_up"]:
                taken[name].append(1000 * (time.perf_counter() - start))
        if turn > 2 * part["warm_up"] and time.monotonic() > end:
            break
    return taken


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer: Facts = {"version": version(asked["package"])}
    for part, function in (("check", checked), ("time", timed)):
        if part in asked:
            answer[part] = function(asked)
    sys.stdout.write(json.dumps(answer))
