"""A quantized model: its layers in their places, its description, and what it takes to store."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast

from torch import nn

from vitcompress.errors import InputError
from vitcompress.memory import copied
from vitcompress.methods import codebooks, quantizer
from vitcompress.model.architecture import (
    LevelCount,
    QuantizedLayer,
    VitModel,
    rescales_pixels,
    stored_tensors,
)
from vitcompress.model.compact import packed
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.selection import allowed_widths


def code_bytes(
    linear: nn.Linear,
    bits: int,
    config: QuantizeConfig,
    pattern: str | None = None,
) -> int:
    """Bytes of the packed codes of a layer, of its packed multipliers and of its scales.

    `pattern`: of a sparse layer, whose codes are stored without their zeros.
    """
    layer = empty(linear, bits, config)
    stored = packed(nn.ModuleDict({"layer": layer}), {"layer": pattern} if pattern else {})
    kinds = ("codes", "mask", "multipliers", "table")
    scales = linear.out_features * (2 if bits < 8 else 4)
    return scales + sum(t.nbytes for name, t in stored.items() if name.endswith(kinds))


def empty(linear: nn.Linear, bits: int, config: QuantizeConfig) -> QuantizedLinear:
    """A quantized layer in the place of `linear`; of its tensors only the zeros are right."""
    levels = codebooks.of_width(config.codebook, bits).levels(bits)
    group = quantizer.grouped(levels, config.group)
    layer = QuantizedLinear(
        linear.in_features, linear.out_features, bits, config.activations, group=group
    )
    layer.levels = levels
    present = (linear.weight != 0).float() * quantizer.weight_range(levels)[1]
    layer.codes = quantizer.pack_weight(present, levels)
    return layer


def planned_bytes(model: VitModel, config: QuantizeConfig, bits: Mapping[str, int]) -> int:
    """Bytes of all tensors of the model with layers of these widths."""
    found = linears_of(model.module, bits)
    layers = {name: empty(found[name], b, config) for name, b in bits.items()}
    described = with_layers(model, copied(model.module), layers, config)
    return sum(tensor.nbytes for tensor in stored_tensors(described).values())


def linears_of(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Linear]:
    return {name: cast(nn.Linear, module.get_submodule(name)) for name in names}


def with_layers(
    model: VitModel,
    module: nn.Module,
    layers: Mapping[str, QuantizedLinear],
    config: QuantizeConfig,
) -> VitModel:
    """`module` with `layers` in their places (in place), and the description that belongs to it."""
    for name, layer in layers.items():
        module.set_submodule(name, layer)
    described = {
        name: QuantizedLayer(
            bits=q.bits,
            activations=q.activations,
            terms=q.terms,
            residual_tokens=q.residual_tokens,
            group=q.group,
            levels=None if q.table is None else cast(LevelCount, len(q.table)),
        )
        for name, q in layers.items()
    }
    quantized = {**model.architecture.quantized, **described}
    half, coded = _stored_small(model, module, config)
    for name in half:
        module.get_parameter(name).copy_(module.get_parameter(name).half())
    for name in coded:
        codes, scale = quantizer.byte_codes(module.get_parameter(name))
        module.get_parameter(name).copy_(codes * scale)
    half += [
        f"{name}.scale"
        for name, q in quantized.items()
        if q.bits < 8 and quantizer.fits_half(module.get_buffer(f"{name}.scale"))
    ]
    update = {
        "pixel_scale": rescales_pixels(module),
        "quantized": quantized,
        "half": tuple(half),
        "coded": tuple(coded),
    }
    return replace(model, module=module, architecture=model.architecture.model_copy(update=update))


def _stored_small(
    model: VitModel, module: nn.Module, config: QuantizeConfig
) -> tuple[list[str], list[str]]:
    """The names of the parameters of `module` that are stored in float16, and in 8-bit codes; what
    another quantize stage of `model` decided stays.

    Of the matrices that `rest` is for, those that float16 or codes do not hold stay float32. Raises
    `InputError` for a layer that is pinned to float16 and does not fit.
    """
    left = dict(module.named_parameters())
    half = [name for name in model.architecture.half if name in left]
    coded = [name for name in model.architecture.coded if name in left]
    decided = {*half, *coded}
    pinned = {f"{name}.weight": kind for name, kind in allowed_widths(model, config)[1].items()}
    for name in (n for n, kind in pinned.items() if kind == "float16" and n not in decided):
        if not quantizer.keeps_in_half(left[name]):
            raise InputError(
                f"stages.{config.name}.pin: {name} is beyond what float16 holds (65504, or nearly "
                "0); pin its layer to float32"
            )
        half.append(name)
    decided |= set(pinned)
    if config.rest != "float32":
        sparse = {f"{name}.weight" for name in model.architecture.sparse}
        for name, parameter in left.items():
            if parameter.ndim > 1 and name not in decided:
                weight = name.endswith(".weight") and name not in sparse
                (coded if weight and config.rest == "int8" else half).append(name)
    return (
        [name for name in half if quantizer.keeps_in_half(left[name])],
        [name for name in coded if quantizer.keeps_in_bytes(left[name])],
    )
