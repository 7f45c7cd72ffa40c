"""ONNX files: a module traced, put through a row of passes, written and checked."""

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx.utils
import onnx_ir as ir
import torch
from torch import Tensor, nn

from vitcompress import targets
from vitcompress.errors import InputError
from vitcompress.export.passes import Pass, Source
from vitcompress.export.passes.describe import METADATA_PREFIX, describe
from vitcompress.export.passes.fold import fold
from vitcompress.export.passes.forget import forget
from vitcompress.export.passes.halve import halve
from vitcompress.export.passes.inline import inline
from vitcompress.export.passes.lower import lower
from vitcompress.export.passes.narrow import narrow
from vitcompress.export.passes.outline import outline
from vitcompress.export.passes.share import share
from vitcompress.export.traces import let_go
from vitcompress.foreign import check_regular, reading
from vitcompress.model.architecture import Architecture, VitModel
from vitcompress.model.compact import exportable
from vitcompress.terms import Floats

INPUT, OUTPUT = "pixels", "logits"
# Of the facts in a file: the target that it was written for, what pip installs to run it, and what
# its floats are.
TARGET, RUNTIME, FLOATS = "target", "runtime", "floats"
_REWRITING: tuple[Pass, ...] = (fold, outline, halve, share, inline, lower)
PASSES: tuple[Pass, ...] = (narrow, *_REWRITING, describe)
_REMEDY = "give one that `export` or `run` has written"
_MOST_VALUES = 2**26  # of an image
_LOWEST_OPSET = 18  # that torch writes
# Protocol buffers end at 2 GB; weights of larger models lie beside the file.
EXTERNAL_BYTES = 1_900_000_000


def export_onnx(
    model: VitModel,
    path: Path,
    facts: Mapping[str, str],
    target: str = targets.DEFAULT,
    floats: Floats = "float32",
) -> dict[str, int]:
    """Write `model` to `path`: pixels float32 [batch, C, H, W] → logits [batch, classes].

    Only the batch is dynamic. `facts` go into the file's metadata as `vitcompress.KEY`. A quantized
    layer is one node, named as the layer: the call of a function. Floats that are to be stored in
    float16 are so in `model` (`floats.in_float16`); `floats` says whether they are computed in it.

    Returns how many places each pass has changed, by its name. Raises `InputError` for layers that
    the target cannot have.
    """
    runtime = targets.load_target(target)
    runtime.check_layers(model.architecture.quantized)
    module = exportable(model.module, model.architecture.sparse)
    size = (model.preprocess.channels, *model.preprocess.input_size)
    graph_model = _traced(module, [size], [(INPUT, OUTPUT)], runtime)
    facts = {**facts, TARGET: target, RUNTIME: runtime.requirement, FLOATS: floats}
    source = Source(model.architecture, module.state_dict().keys(), facts, runtime, floats)
    proto, changed = _rewritten(graph_model, source, PASSES)
    large = sum(t.nbytes for t in model.module.state_dict().values()) > EXTERNAL_BYTES
    onnx.save(proto, path, save_as_external_data=large, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)
    return changed


class Part(NamedTuple):
    """A piece of a model, that reads float32 [batch, *size]."""

    module: nn.Module
    size: tuple[int, ...]


def export_parts(parts: Mapping[str, Part], target: str) -> dict[str, onnx.ModelProto]:
    """Each of `parts`, by name, as a model in the operators of the target; all from one trace."""
    runtime, module = targets.load_target(target), _Parts(part.module for part in parts.values())
    ends = [(f"{INPUT}.{number}", f"{OUTPUT}.{number}") for number in range(len(parts))]
    graph_model = _traced(module, [part.size for part in parts.values()], ends, runtime)
    source = Source(Architecture(timm=""), module.state_dict().keys(), {}, runtime, "float32")
    extractor = onnx.utils.Extractor(_rewritten(graph_model, source, _REWRITING)[0])
    return {
        name: extractor.extract_model([read], [written])
        for name, (read, written) in zip(parts, ends, strict=True)
    }


class _Parts(nn.Module):
    """Modules side by side, each with an input of its own."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part, x in zip(self.parts, inputs, strict=True))


def _rewritten(
    graph_model: ir.Model, source: Source, passes: Sequence[Pass]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The message to be written, and how many places each pass has changed, by its name."""
    changed = {each.__name__: each(graph_model, source) for each in passes}
    proto = ir.to_proto(graph_model)
    proto.ir_version = min(proto.ir_version, source.target.ir_version)
    changed[forget.__name__] = forget(proto.graph, source)
    return proto, changed


def load_onnx(path: Path) -> onnx.ModelProto:
    """The ONNX file at `path`, tensors beside it left out. Raises `InputError` for other files, for
    text that is not UTF-8, and where tensors do not lie in files beside it."""
    check_regular(path)
    with reading(path, "damaged, or not an ONNX file", _REMEDY):
        model = onnx.load(path, load_external_data=False)
        places = list(_places(model))
    if not model.graph.node:
        raise InputError(f"{path}: damaged, or not an ONNX file; {_REMEDY}")
    for name, place in places:
        if not place or place != Path(place).name or (path.parent / place).is_symlink():
            raise InputError(
                f"{path}: the tensor {name} is said to lie in {place!r}, which is no file beside "
                f"it; {_REMEDY}"
            )
    return model


def _places(message: Any) -> Iterator[tuple[str, str]]:
    """Of the tensors at any depth that lie in other files, their names and these files.

    Raises `ValueError` for text that is not UTF-8, which protobuf then gives as bytes.
    """
    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL:
            told = {each.key: each.value for each in message.external_data}
            yield message.name, told.get("location", "")
        return
    for field, value in message.ListFields():
        one = isinstance(value, str | bytes) or not isinstance(value, Sequence)
        for each in (value,) if one else value:
            if field.message_type is not None:
                yield from _places(each)
            elif field.type == field.TYPE_STRING and not isinstance(each, str):
                raise ValueError(f"{field.name} {each!r} is not UTF-8")


def check_reads_pixels(path: Path) -> None:
    """Raise `InputError` where the ONNX file at `path` has no single input of pixels, float32
    [batch, C, H, W], of fixed sizes that fit into memory."""
    graph = load_onnx(path).graph
    constants = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    types = [each.type.tensor_type for each in inputs]
    is_float = all(each.elem_type == onnx.TensorProto.FLOAT for each in types)
    sizes = [[dim.dim_value for dim in each.shape.dim][1:] for each in types]
    fits = all(len(s) == 3 and min(s) > 0 and math.prod(s) <= _MOST_VALUES for s in sizes)
    if len(inputs) != 1 or not is_float or not fits:
        told = ", ".join(f"{e.name} {s}" for e, s in zip(inputs, sizes, strict=True)) or "nothing"
        raise InputError(
            f"{path}: reads {told}, and not one image [C, H, W] of floats of a fixed size; "
            + _REMEDY
        )


def metadata(path: Path) -> dict[str, str]:
    """The facts that `export_onnx` wrote, by key without the prefix; raises as `load_onnx` does."""
    props = load_onnx(path).metadata_props
    return {
        p.key.removeprefix(METADATA_PREFIX): p.value
        for p in props
        if p.key.startswith(METADATA_PREFIX)
    }


def _traced(
    module: nn.Module,
    sizes: Sequence[Sequence[int]],
    ends: Sequence[tuple[str, str]],
    target: targets.Target,
) -> ir.Model:
    """`module`, which makes of inputs [batch, *size] as many outputs, with the names of `ends`."""
    batch = torch.export.Dim("batch", min=1, max=65535)
    shapes = tuple({0: batch} for _ in sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own code
        program = torch.onnx.export(
            module,
            tuple(torch.zeros(2, *size) for size in sizes),
            dynamo=True,
            opset_version=max(target.opset, _LOWEST_OPSET),
            input_names=[read for read, _ in ends],
            output_names=[written for _, written in ends],
            dynamic_shapes=(shapes,) if isinstance(module, _Parts) else shapes,
            custom_translation_table=dict(target.operators()),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    if program.exported_program is not None:
        let_go(program.exported_program)
    return program.model


def facts_of(model: VitModel, extra: Mapping[str, str]) -> dict[str, str]:
    """What an exported file says of itself: how to prepare images and what outputs mean, as
    data and in words, its classes' names where they are known, and what was quantized."""
    layers = model.architecture.quantized
    quantized = {name: layer.model_dump(exclude_defaults=True) for name, layer in layers.items()}
    names = model.class_names
    named = {} if names is None else {"class_names": json.dumps(names, ensure_ascii=False)}
    return {
        "task": model.task.name,
        **named,
        "preprocessing": model.preprocess.model_dump_json(),
        "preprocessing_in_words": model.preprocess.in_words(),
        "output_in_words": model.task.means,
        "quantization": json.dumps(quantized),
        "timm": model.architecture.timm,
        **extra,
    }
