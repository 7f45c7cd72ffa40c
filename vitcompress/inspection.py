"""Looking at models without changing them: what they hold, how good and how fast they are."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from vitcompress import targets, tasks
from vitcompress.data.preprocess import Preprocess
from vitcompress.errors import InputError
from vitcompress.evaluation import Runner, judge, torch_runner
from vitcompress.export import folder
from vitcompress.export.onnx import load_onnx, metadata
from vitcompress.measure import cost
from vitcompress.measure.runtime import logits, time_in_turns
from vitcompress.model.architecture import VitModel, from_source
from vitcompress.output import ONNX, onnx_bytes
from vitcompress.place import MANIFEST
from vitcompress.run_images import evaluation_images
from vitcompress.tasks import Task

_MAX_UNREADABLE = 0.01


def facts(path: str, name: str | None) -> dict[str, Any]:
    """What a checkpoint, an output folder or an ONNX file holds.

    Raises `InputError` when it is none of these.
    """
    if path.endswith(".onnx"):
        return _onnx_facts(_existing(path))
    if _is_output(path):
        found = _model_facts(folder.load_folder(Path(path)))
        files = {f.name: f.stat().st_size for f in sorted(Path(path).iterdir()) if f.is_file()}
        exported = Path(path) / ONNX
        onnx_file = {"onnx": _onnx_facts(exported)} if exported.exists() else {}
        return {**found, "file_bytes": files, **onnx_file}
    return _model_facts(from_source(path, name, {}, None, {}))


def evaluate(
    model: str, name: str | None, evaluation: str, classes: Path | None, limit: int | None
) -> dict[str, Any]:
    """The figures of a model on labelled images. Raises `InputError`."""
    runner, preprocess, task, outputs = _runner(model, name)
    images = evaluation_images(evaluation, classes, task, outputs, limit)
    if images.labels is None:
        raise InputError(f"{evaluation}: has no labels that a model of {task.name} is held against")
    judged = judge(runner, images, preprocess, _MAX_UNREADABLE, "evaluating")
    return judged.figures(task, None).model_dump(include={"images", *task.against_labels})


def bench(paths: list[str], batch: int, seconds: float, threads: int) -> dict[str, Any]:
    """Latencies of ONNX files, timed in turns on the same random pixels.

    Raises `InputError` when a file cannot be run, or the files take pixels of different sizes.
    """
    files = {path: _onnx_of(path) for path in dict.fromkeys(paths)}
    runtime = targets.load_target(targets.DEFAULT)
    sessions = {path: runtime.session(file, threads) for path, file in files.items()}
    shapes = {path: held.input_shape for path, held in sessions.items()}
    shape = shapes[paths[0]]
    for path, other in shapes.items():
        if other != shape:
            raise InputError(
                f"{path}: takes pixels {list(other)}, and {paths[0]} takes {list(shape)}"
            )
    pixels = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
    timed = time_in_turns(sessions, pixels, seconds)
    found: dict[str, Any] = {
        path: {
            "p50_ms": timing.p50,
            "p90_ms": timing.percentile(90),
            "p99_ms": timing.percentile(99),
            "runs": len(timing.milliseconds),
        }
        for path, timing in timed.items()
    }
    found["threads"], found["batch"] = threads, batch
    if len(timed) == 2:
        first, second = timed.values()
        found["speedup"] = first.p50 / second.p50
    return found


def _is_output(path: str) -> bool:
    config = Path(path) / folder.CONFIG
    return (
        config.is_file()
        and b'"architecture"' in config.read_bytes()[:2000]
        and (Path(path) / MANIFEST).is_file()
    )


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    return Path(path)


def _onnx_of(path: str) -> Path:
    if path.endswith(".onnx"):
        return _existing(path)
    if not (Path(path) / ONNX).is_file():
        raise InputError(f"{path}: no ONNX file and no folder with a {ONNX}")
    return Path(path) / ONNX


def _model_facts(model: VitModel) -> dict[str, Any]:
    layers = Counter(
        f"{layer.bits}-bit weights, {layer.activations} activations, {layer.terms} term(s)"
        + (f" for {layer.residual_tokens} token(s)" if layer.residual_tokens else "")
        for layer in model.architecture.quantized.values()
    )
    return {
        "timm": model.architecture.timm,
        "options": model.architecture.options,
        "task": model.task.name,
        "classes": model.num_classes,
        "parameters": cost.parameters(model.module),
        "macs": cost.macs(model),
        "tensor_bytes": folder.stored_bytes(model),
        "quantized_layers": dict(layers),
        "sparse_layers": len(model.architecture.sparse),
        "preprocessing": model.preprocess.model_dump(mode="json"),
    }


def _onnx_facts(path: Path) -> dict[str, Any]:
    graph = load_onnx(path).graph
    return {
        "bytes": onnx_bytes(path),
        "inputs": {i.name: _shape(i) for i in graph.input},
        "outputs": {o.name: _shape(o) for o in graph.output},
        "operators": dict(Counter(node.op_type for node in graph.node).most_common()),
        "metadata": {k: v for k, v in metadata(path).items() if k != "quantization"},
    }


def _shape(value: onnx.ValueInfoProto) -> str:
    return " × ".join(d.dim_param or str(d.dim_value) for d in value.type.tensor_type.shape.dim)


def _runner(model: str, name: str | None) -> tuple[Runner, Preprocess, Task, int]:
    """What runs `model`, its preprocessing, its task, and how many outputs it has."""
    if model.endswith(".onnx") or (Path(model) / ONNX).is_file():
        path = _onnx_of(model)
        facts = metadata(path)
        described = facts.get("preprocessing")
        if described is None:
            raise InputError(f"{path}: says nothing of preprocessing; give the folder of a run")
        held = targets.load_target(targets.DEFAULT).session(path, 0)
        outputs = int(held.output_shape[1])
        return (
            lambda pixels: next(logits(held, [pixels])),
            Preprocess.model_validate_json(described),
            tasks.chosen(facts.get("task"), outputs),
            outputs,
        )
    loaded = (
        folder.load_folder(Path(model))
        if _is_output(model)
        else from_source(model, name, {}, None, {})
    )
    runner = torch_runner(loaded, torch.device("cpu"))
    return runner, loaded.preprocess, loaded.task, loaded.num_classes
