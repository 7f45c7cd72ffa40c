"""Looking at models without changing them: what they hold, how good and how fast they are."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from pydantic import TypeAdapter

from vitcompress import paths, targets, tasks
from vitcompress.data.preprocess import Preprocess
from vitcompress.dense import load_dense
from vitcompress.details import Table
from vitcompress.errors import InputError
from vitcompress.evaluation import Judged, Runner, judge, torch_runner
from vitcompress.export import folder
from vitcompress.export.onnx import TARGET, check_reads_pixels, load_onnx, metadata
from vitcompress.foreign import reading
from vitcompress.measure import cost
from vitcompress.measure.runtime import logits, time_in_turns
from vitcompress.model.architecture import VitModel, spec_of, stored_tensors
from vitcompress.model.origins import of_timm
from vitcompress.output import ONNX, onnx_bytes
from vitcompress.place import MANIFEST
from vitcompress.recipe import Recipe
from vitcompress.report.model import Metrics
from vitcompress.robustness import Rivals, by_class, check_corruptible, under_corruptions
from vitcompress.run_images import Judging, evaluation_images

_MOST_PIXELS = 2**27  # values that are timed at a time
_NAMES = TypeAdapter[tuple[str, ...] | None](tuple[str, ...] | None)


@dataclass(frozen=True)
class _Runnable:
    """What runs a model, and what is to be known of it."""

    run: Runner
    preprocess: Preprocess
    judging: Judging


def facts(recipe: Recipe) -> dict[str, Any]:
    """What the checkpoint, output folder or ONNX file that `recipe` names holds.

    Raises `InputError` when it is none of these.
    """
    path = _path(recipe)
    if path.endswith(".onnx"):
        return _onnx_facts(_existing(path))
    if _is_output(path):
        found = _model_facts(folder.load_folder(Path(path)))
        files = {f.name: f.stat().st_size for f in sorted(Path(path).iterdir()) if f.is_file()}
        exported = Path(path) / ONNX
        onnx_file = {"onnx": _onnx_facts(exported)} if exported.exists() else {}
        said = {"origins": {"all": f"{folder.CONFIG} of a run"}}
        return {**found, **said, "file_bytes": files, **onnx_file}
    model = load_dense(recipe)
    return {**_model_facts(model), "origins": _origins(model, recipe)}


def evaluate(
    recipe: Recipe, limit: int | None, dense: Recipe | None = None, corrupt: bool = False
) -> tuple[Metrics, tuple[Table, ...]]:
    """The figures of the model that `recipe` names on its evaluation images, and tables of what
    they hide.

    `dense`: names a model to hold it against. `corrupt`: whether to look at corrupted images too.
    Raises `InputError`.
    """
    held, data = _runnable(recipe), recipe.data
    rival = None if dense is None else _runnable(dense)
    if rival is not None:
        _check_rival(held, rival, str(dense and dense.model.checkpoint))
    if corrupt:
        check_corruptible(held.preprocess)
    classes = Path(data.classes) if data.classes else None
    source, task = str(data.evaluation), held.judging.task
    images = evaluation_images(source, classes, held.judging, limit)
    if images.labels is None and rival is None:
        raise InputError(
            f"{source}: has no labels that a model of {task.name} is held against; give some, or "
            "--dense MODEL to hold it against"
        )

    def judged(run: Runner, title: str) -> Judged:
        return judge(run, images, held.preprocess, data.max_unreadable, title)

    before = None if rival is None else judged(rival.run, "evaluating the dense model")
    found, tables = judged(held.run, "evaluating"), list[Table]()
    if images.labels is not None and task.labels == "classes":
        tables.append(by_class(found, before, held.judging.class_names))
    if corrupt:
        rivals = Rivals(held.run, None if rival is None else rival.run)
        tables.append(under_corruptions(rivals, task, held.preprocess, judged))
    return found.figures(task, before), tuple(tables)


def _check_rival(held: _Runnable, rival: _Runnable, source: str) -> None:
    """Raise `InputError` where two models cannot be held against each other."""
    if (held.judging.task, held.preprocess) != (rival.judging.task, rival.preprocess):
        raise InputError(
            f"--dense {source}: takes other images, or has another task; give the model that the "
            "other was made from"
        )


def _path(recipe: Recipe) -> str:
    """The model that `recipe` names. Raises `InputError` where it was exported, and the recipe says
    how to read it."""
    path, section = str(recipe.model.checkpoint), recipe.model
    exported = path.endswith(".onnx") or _is_output(path)
    told = section.options or section.num_classes or recipe.data.preprocess_overrides()
    if exported and (told or recipe.task or recipe.classes):
        raise InputError(
            f"{path}: says itself how it is used; leave out --set, which is for checkpoints"
        )
    return path


def bench(paths: list[str], batch: int, seconds: float, threads: int) -> dict[str, Any]:
    """Latencies of ONNX files, each in its runtime, timed in turns on the same random pixels.

    Raises `InputError` when a file cannot be run, or the files take pixels of different sizes.
    """
    files = {path: _onnx_of(path) for path in dict.fromkeys(paths)}
    runtimes = {path: _runtime(file) for path, file in files.items()}
    sessions = {path: _session(file, threads) for path, file in files.items()}
    shapes = {path: held.input_shape for path, held in sessions.items()}
    shape = shapes[paths[0]]
    for path, other in shapes.items():
        if other != shape:
            raise InputError(
                f"{path}: takes pixels {list(other)}, and {paths[0]} takes {list(shape)}"
            )
    if batch * math.prod(shape) > _MOST_PIXELS:
        raise InputError(f"--batch {batch}: images of {list(shape)} would not fit into memory")
    pixels = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
    for path, session in sessions.items():
        with reading(path, f"cannot be run on {batch} image(s)", "give one that `run` has written"):
            session.run(pixels)
    timed = time_in_turns(sessions, pixels, seconds)
    found: dict[str, Any] = {
        path: {
            "runtime": f"{runtimes[path].name} {runtimes[path].version}",
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
    if not (paths.is_file(config) and paths.is_file(Path(path) / MANIFEST)):
        return False
    with reading(config, "cannot be read", "make it readable"), config.open("rb") as file:
        return b'"architecture"' in file.read(2000)


def _existing(path: str) -> Path:
    if not paths.exists(path):
        raise InputError(f"{path}: no such file")
    return Path(path)


def _onnx_of(path: str) -> Path:
    if path.endswith(".onnx"):
        return _existing(path)
    if not paths.is_file(Path(path) / ONNX):
        raise InputError(f"{path}: no ONNX file and no folder with a {ONNX}")
    return Path(path) / ONNX


def _runtime(path: Path) -> targets.Target:
    """The target that a file was written for; the default one for files of others."""
    return targets.load_target(metadata(path).get(TARGET, targets.DEFAULT))


def _session(path: Path, threads: int) -> targets.Session:
    """A file of anybody, ready to be run. Raises `InputError` where it reads no pixels."""
    check_reads_pixels(path)
    return _runtime(path).session(path, threads)


def _model_facts(model: VitModel) -> dict[str, Any]:
    layers = Counter(
        f"{layer.bits}-bit weights"
        + (f" of a table of {layer.levels} levels" if layer.levels else "")
        + f", {layer.activations} activations, {layer.terms} term(s)"
        + (f" for {layer.residual_tokens} token(s)" if layer.residual_tokens else "")
        for layer in model.architecture.quantized.values()
    )
    return {
        "timm": model.architecture.timm,
        **({"layout": model.reading.layout} if model.reading else {}),
        "family": model.anatomy.family,
        "options": model.architecture.options,
        "task": model.task.name,
        "classes": model.num_classes,
        "parameters": cost.parameters(model.module),
        "macs": cost.macs(model),
        "tensor_bytes": folder.stored_bytes(model),
        "dtypes": dict(_dtypes(model)),
        "quantized_layers": dict(layers),
        "sparse_layers": len(model.architecture.sparse),
        "preprocessing": model.preprocess.model_dump(mode="json"),
    }


def _dtypes(model: VitModel) -> Mapping[str, int]:
    """How many tensors of each type are stored: in the checkpoint, else as an output has them."""
    if model.reading is not None:
        return model.reading.dtypes
    tensors = stored_tensors(model).values()
    return Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)


def _origins(model: VitModel, recipe: Recipe) -> dict[str, str]:
    """Whence each thing that is known of a dense model came."""
    if model.reading is not None:
        found = dict(model.reading.origins)
    else:  # of timm:NAME
        told = {f"data.{key}": value for key, value in recipe.data.preprocess_overrides().items()}
        found = {"name": "given as timm:NAME", "task": "the number of outputs"} | of_timm(told)
    kind = type(spec_of(model.architecture).build(model.architecture.timm)).__name__
    return {**found, "family": f"timm's class {kind}"} | ({"task": "task"} if recipe.task else {})


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


def _runnable(recipe: Recipe) -> _Runnable:
    model = _path(recipe)
    if model.endswith(".onnx") or paths.is_file(Path(model) / ONNX):
        path = _onnx_of(model)
        facts = metadata(path)
        described = facts.get("preprocessing")
        if described is None:
            raise InputError(f"{path}: says nothing of preprocessing; give the folder of a run")
        held = _session(path, 0)
        with reading(path, "what it says of itself is wrong", "give the folder of a run"):
            preprocess = Preprocess.model_validate_json(described)
            names = _NAMES.validate_json(facts.get("class_names", "null"))
            if held.input_shape != (preprocess.channels, *preprocess.input_size):
                raise ValueError(f"takes pixels {list(held.input_shape)}")
            shape = held.run(np.zeros((1, *held.input_shape), np.float32)).shape
            outputs = shape[1]
            if names is not None and len(names) != outputs:
                raise ValueError(f"{len(names)} class names for {outputs} outputs")
            task = tasks.chosen(facts.get("task"), outputs)
            if len(shape) != 2 and not task.fits(0):
                raise ValueError(f"{list(shape[1:])} outputs an image for {task.name}")
        return _Runnable(
            lambda pixels: next(logits(held, [pixels])), preprocess, Judging(task, outputs, names)
        )
    loaded = folder.load_folder(Path(model)) if _is_output(model) else load_dense(recipe)
    runner = torch_runner(loaded, torch.device("cpu"))
    judging = Judging(loaded.task, loaded.num_classes, loaded.class_names, loaded.subset)
    return _Runnable(runner, loaded.preprocess, judging)
