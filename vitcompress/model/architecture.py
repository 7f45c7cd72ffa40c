"""The description of a model as plain JSON, and the module that a description stands for."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat
from torch import Tensor, nn

from vitcompress import tasks
from vitcompress.console import note
from vitcompress.data.preprocess import Preprocess
from vitcompress.errors import InputError
from vitcompress.foreign import reading
from vitcompress.methods import patterns, quantizer
from vitcompress.model import checkpoint, compact, layouts, mlp_head, origins
from vitcompress.model.anatomy import Alteration, Anatomy
from vitcompress.model.embedding import resize_embedding
from vitcompress.model.families import adopt, anatomy_of
from vitcompress.model.head import Choice, Head
from vitcompress.model.image_size import ImageSizes, image_sizes
from vitcompress.model.layouts import Converted, Source
from vitcompress.model.merging import Merging, MergingBlocks
from vitcompress.model.modules.factored import FactoredLayer
from vitcompress.model.modules.patches import PatchEmbed
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.model.naming import infer_name
from vitcompress.model.options import ModelOptions
from vitcompress.model.origins import Reading
from vitcompress.model.reading import read_source
from vitcompress.model.sizes import BlockSizes, narrowable, resize
from vitcompress.terms import Activations

if TYPE_CHECKING:
    from vitcompress.model.subset import Subset

_AS_IT_IS = Choice()

_Layer = TypeVar("_Layer", bound=BaseModel)

SCALE = ".scale"
"""What the name of a tensor stored as 8-bit codes ends in, for its scale."""


LevelCount = Literal[3, 4, 8, 16, 32]


class QuantizedLayer(BaseModel):
    """How one Linear is quantized: the width of its weight codes, and its activations.

    `terms`: 2 where the input is the sum of two 8-bit terms, worth nearly 16 bits;
    `residual_tokens`: how many leading tokens have the second (None: all). `group`: how many
    inputs share a whole multiplier of the codes (None: there are none). `levels`: how many whole
    numbers the codes stand for, where a table of them is stored (None: for evenly spaced ones).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: Annotated[int, Field(ge=2, le=8)]
    activations: Activations
    group: Annotated[int, Field(ge=1)] | None = None
    terms: Literal[1, 2] = 1
    residual_tokens: Annotated[int, Field(ge=1)] | None = None
    levels: LevelCount | None = None


def _zeros(text: str) -> str:
    if patterns.parse_pattern(text).blocks:
        raise ValueError(f"{text!r} is no pattern of zeros")
    return text


class Architecture(BaseModel):
    """All that `build` needs to make the module whose tensors are stored beside it.

    `norm_eps`: of all normalisations of `timm` (None: as timm has it).
    `head`: how tokens become the output (None: as timm has it).
    `pixel_scale`: whether the stem shifts and scales each channel of pixels before it reads them.
    `tail_tokens`: the last block computes only so many leading tokens (None: all of them).
    `blocks`: the sizes of all blocks of a pruned model (None: as timm makes them).
    `embedding`: the width of its stream of tokens (None: as timm makes it).
    `merging`: how tokens are merged between blocks (None: not).
    `factored`: by name of the layer, which two products stand for. `quantized`: by layer name.
    `half`: names of tensors stored in float16 and computed in float32.
    `coded`: of tensors stored as 8-bit codes, with a scale for each first index.
    `sparse`: by layer name, the pattern of zeros that are not stored: n:m, RxC or unstructured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timm: str
    options: ModelOptions = {}
    norm_eps: PositiveFloat | None = None
    head: Head | None = None
    pixel_scale: bool = False
    tail_tokens: int | None = None
    blocks: tuple[BlockSizes, ...] | None = None
    embedding: Annotated[int, Field(ge=2)] | None = None
    merging: Merging | None = None
    factored: dict[str, FactoredLayer] = {}
    quantized: dict[str, QuantizedLayer] = {}
    half: tuple[str, ...] = ()
    coded: tuple[str, ...] = ()
    sparse: dict[str, Annotated[str, AfterValidator(_zeros)]] = {}


@dataclass(frozen=True)
class VitModel:
    """A module (in eval mode, without gradients), its description and its preprocessing.

    `task_name`: the task where it is not the one that the number of outputs suggests.
    `class_names`: of all outputs, where they are known. `trained_size`: height and width of the
    images that it was trained for, where they are not those of `preprocess`. `reading`: how its
    checkpoint was read, where it comes from one. `subset`: which classes are kept, where not all.
    """

    module: nn.Module
    architecture: Architecture
    preprocess: Preprocess
    task_name: str | None = None
    class_names: tuple[str, ...] | None = None
    trained_size: tuple[int, int] | None = None
    reading: Reading | None = None
    subset: "Subset | None" = None

    @property
    def num_classes(self) -> int:
        return int(cast(Any, self.module).num_classes)

    @property
    def task(self) -> tasks.Task:
        """What the output means."""
        return tasks.chosen(self.task_name, self.num_classes)

    def with_task(self, name: str | None) -> "VitModel":
        """The same model with the task `name`, by default the one that is inferred.

        Raises `InputError` where it cannot have that task.
        """
        task = tasks.chosen(name, self.num_classes).name
        inferred = task == tasks.infer(self.num_classes)
        return replace(self, task_name=None if inferred else task)

    @property
    def anatomy(self) -> Anatomy:
        return anatomy_of(self.module)

    def fingerprint(self) -> str:
        """sha256 (hex) over the description, the task where it is given, and all tensors."""
        total = hashlib.sha256(self.architecture.model_dump_json().encode())
        if self.task_name is not None:
            total.update(f"{self.task_name}\n".encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


def from_source(
    source: str,
    name: str | None,
    options: dict[str, Any],
    num_classes: int | None,
    preprocess: dict[str, Any],
    key: str | None = None,
    choice: Choice = _AS_IT_IS,
) -> VitModel:
    """Read a checkpoint (a path, `timm:NAME` or `example:glyphs`) as a dense model.

    `preprocess` holds what the recipe overrides; the rest follows timm's configuration. For an
    `input_size` that is not that of training the model is resampled, see `image_sizes`. `key`:
    which of the models in a file is meant, as a dotted path. An output of `choice` is an embedding,
    whatever the task of the checkpoint.
    Raises `InputError` for whatever is wrong with the checkpoint, and for images of a size that the
    model cannot take.
    """
    wanted = preprocess.get("input_size")
    if source == "example:glyphs":
        from vitcompress.example import glyphs

        source = str(glyphs.CHECKPOINT)
        name, options = glyphs.TIMM_NAME, {**glyphs.TIMM_OPTIONS, **options}
        preprocess = {"mean": glyphs.MEAN, "std": glyphs.STD, "crop_pct": 1.0, **preprocess}
    if source.startswith("timm:"):
        known = checkpoint.published(source.removeprefix("timm:"))
        sizes = image_sizes(known, options, wanted, source)
        sized = {key: sizes.options[key] for key in ("img_size",) if key in sizes.options}
        module, spec = checkpoint.pretrained_model(str(known.timm), choice, sized)
        return _prepared(module, spec, sizes, preprocess)
    found, layout, converted = _converted(source, key)
    unread = "none" if choice.output else None  # a head that is left out anyway
    converted = mlp_head.described(converted, choice.activation or unread, source)
    headless = converted.head is not None and converted.head.layers is not None
    timm_name = name or converted.timm or infer_name(converted.tensors, source, headless)
    named = replace(converted, timm=timm_name)
    sizes = image_sizes(named, options, wanted, source)
    module, spec = checkpoint.load_model(
        named, options, num_classes, choice, source=source, sizes=sizes
    )
    model = _prepared(module, spec, sizes, {**converted.preprocess, **preprocess})
    given = {"model.name": name, "model.output": choice.output}
    given |= {f"model.options.{key}": value for key, value in options.items()}
    given |= {f"data.{key}": value for key, value in preprocess.items()}
    model = replace(model, reading=origins.reading(found, layout, converted, spec, given))
    return model if choice.output is not None else _told(model, converted)


def _converted(source: str, key: str | None) -> tuple[Source, str, Converted]:
    """What is in the file or folder `source`, its layout, and the same in timm's."""
    found = read_source(Path(source), key)
    if isinstance(found.config.get("architecture"), dict):
        raise InputError(
            f"{source}: an output of vitcompress; give the checkpoint it was made from"
        )
    with reading(source, "its config.json or its tensors are of no model", "give an intact one"):
        layout = layouts.layout_of(found)
        converted = layouts.convert(found, layout)
    for line in converted.notes:
        note(line)
    return found, layout, converted


def _prepared(
    module: nn.Module, spec: checkpoint.ModelSpec, sizes: ImageSizes, preprocess: dict[str, Any]
) -> VitModel:
    """The loaded `module`; `preprocess`: what is not as timm has it."""
    facts = checkpoint.pretrained_cfg(spec)
    if sizes.used is not None:
        preprocess = {**preprocess, "input_size": sizes.used}
    return VitModel(
        module=adopt(module, facts["input_size"]),
        architecture=Architecture(**spec.model_dump()),
        preprocess=Preprocess.from_timm(facts, **preprocess),
        trained_size=sizes.trained if sizes.changed else None,
    )


def _told(model: VitModel, converted: Converted) -> VitModel:
    """`model` with the task and the names of classes that its checkpoint tells."""
    names, outputs = converted.classes, model.num_classes
    if names is not None and len(names) != outputs:
        note(f"{len(names)} class names for {outputs} outputs: they are left out")
        names = None
    return replace(model, task_name=converted.task, class_names=names)


def output_shape(model: VitModel) -> tuple[int, ...]:
    """The shape of what comes out for one image: [classes], [width], or [patches, width]."""
    size = (1, model.preprocess.channels, *model.preprocess.input_size)
    with torch.inference_mode():
        return tuple(model.module(torch.zeros(size)).shape[1:])


def set_tail(module: nn.Module, tokens: int) -> None:
    """Let the last block compute only the first `tokens` tokens (in place)."""
    anatomy_of(module).blocks[-1].tokens = tokens


def set_merging(module: nn.Module, merging: Merging) -> MergingBlocks:
    """Let the blocks pass on fewer tokens (in place)."""
    blocks = merging_blocks(module, merging)
    module.set_submodule(blocks_name(module), blocks)
    return blocks


def blocks_name(module: nn.Module) -> str:
    """The name of the part of `module` that the blocks are in, one after the other."""
    return anatomy_of(module).block_names[0].rpartition(".")[0]


def merging_blocks(module: nn.Module, merging: Merging) -> MergingBlocks:
    """The blocks of `module`, the same modules, passing on fewer tokens."""
    anatomy = anatomy_of(module)
    restore = anatomy.blocks[-1].tokens is None
    return MergingBlocks(
        anatomy.blocks,
        merging,
        cast(tuple[int, int], anatomy.grid),
        anatomy.prefix_tokens,
        anatomy.class_token,
        restore,
    )


def spec_of(architecture: Architecture) -> checkpoint.ModelSpec:
    """What rebuilds the dense module that `architecture` was made from."""
    given = architecture.model_dump(include=set(checkpoint.ModelSpec.model_fields))
    return checkpoint.ModelSpec.model_validate(given)


def build(architecture: Architecture) -> nn.Module:
    """The module that `architecture` describes, its tensors not yet filled in.

    Raises `InputError` when the installed timm does not know the name, and for a description that
    does not fit the model.
    """
    name = architecture.timm
    spec = spec_of(architecture)
    facts = checkpoint.pretrained_cfg(spec)
    module = adopt(spec.build(f"timm {name}"), facts["input_size"])
    if architecture.pixel_scale:
        _rescale_pixels(module, facts["input_size"][0], name)
    if architecture.tail_tokens is not None:
        _check(module, "tail", name)
        set_tail(module, architecture.tail_tokens)
    if architecture.blocks is not None:
        found = anatomy_of(module).blocks
        if len(found) != len(architecture.blocks) or not all(map(narrowable, found)):
            raise InputError(f"config.json: {name} has no {len(architecture.blocks)} plain blocks")
        for block, sizes in zip(found, architecture.blocks, strict=True):
            resize(block, sizes)
    if architecture.embedding is not None:
        _check(module, "embedding", name)
        resize_embedding(module, architecture.embedding)
    if architecture.merging is not None:
        _check(module, "merge", name)
        set_merging(module, architecture.merging)
    _replace(module, architecture, architecture.factored, lambda linear, layer: layer.empty(linear))
    _replace(module, architecture, architecture.quantized, _quantized)
    return module.eval().requires_grad_(False)


def _replace(
    module: nn.Module,
    architecture: Architecture,
    layers: Mapping[str, _Layer],
    made: Callable[[nn.Linear, _Layer], nn.Module],
) -> None:
    """Put what is `made` of the linear layers that `layers` describe in their places (in place)."""
    linears = anatomy_of(module).linears()
    for name, layer in layers.items():
        linear = linears.get(name)
        if linear is None:
            raise InputError(f"config.json: {name} is no linear layer of {architecture.timm}")
        module.set_submodule(name, made(linear, layer))


def _quantized(linear: nn.Linear, layer: QuantizedLayer) -> QuantizedLinear:
    return QuantizedLinear(linear.in_features, linear.out_features, **layer.model_dump())


def rescales_pixels(module: nn.Module) -> bool:
    """`Architecture.pixel_scale` of `module`."""
    embed = _patch_embed(module)
    return embed is not None and embed.scale is not None


def _patch_embed(module: nn.Module) -> PatchEmbed | None:
    return next((part for part in module.modules() if isinstance(part, PatchEmbed)), None)


def _rescale_pixels(module: nn.Module, channels: int, name: str) -> None:
    """Let the stem have a shift and a scale, not yet filled in (in place)."""
    embed = _patch_embed(module)
    if embed is None:
        raise InputError(f"config.json: pixel_scale: the stem of {name} is no single product")
    embed.rescale(torch.zeros(channels), torch.ones(channels))


def _check(module: nn.Module, change: Alteration, name: str) -> None:
    if (reason := anatomy_of(module).refusals.get(change)) is not None:
        raise InputError(f"config.json: {name} does not allow what is said of {change}: {reason}")


def unfilled(model: VitModel) -> VitModel:
    """The dense model that `model` was made from, its tensors not filled in."""
    dense = Architecture(**spec_of(model.architecture).model_dump())
    return replace(model, module=build(dense), architecture=dense)


def stored_tensors(model: VitModel) -> dict[str, Tensor]:
    """The tensors to write, by name: packed codes as they are, `half` ones in float16, `coded` ones
    as codes and a scale, and of sparse layers what is not zero."""
    half = set(stored_in_half(model.architecture))
    state = compact.packed(model.module, model.architecture.sparse)
    stored = {
        name: (tensor.half() if name in half else tensor).contiguous()
        for name, tensor in state.items()
    }
    for name in model.architecture.coded:
        stored[name], stored[name + SCALE] = quantizer.byte_codes(stored[name])
    return stored


def load_tensors(
    module: nn.Module, architecture: Architecture, tensors: Mapping[str, Tensor]
) -> None:
    """Fill `module`, which `architecture` describes, with what `stored_tensors` gave.

    Raises `RuntimeError` for tensors that do not fit, or hold NaN or infinity.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise RuntimeError(f"{name} holds NaN or infinity")
    floats = {n: t.float() if t.dtype == torch.float16 else t for n, t in tensors.items()}
    for name in architecture.coded:
        if name in floats and name + SCALE in floats:  # else loading will say so
            floats[name] = floats[name].float() * floats.pop(name + SCALE)
    module.load_state_dict(compact.unpacked(module, architecture.sparse, floats))


def stored_in_half(architecture: Architecture) -> tuple[str, ...]:
    """The names that the tensors of `half` are stored under."""
    names = {f"{layer}.weight": f"{layer}.values" for layer in architecture.sparse}
    return tuple(names.get(name, name) for name in architecture.half)
