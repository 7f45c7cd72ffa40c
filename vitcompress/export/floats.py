"""What stays float in a model, stored in float16."""

from dataclasses import replace

import torch
from torch import Tensor

from vitcompress.errors import InputError
from vitcompress.memory import copied
from vitcompress.methods import quantizer
from vitcompress.model.architecture import VitModel
from vitcompress.terms import Floats

_LARGEST = torch.finfo(torch.float16).max


def check_weights(dense: VitModel, planned: VitModel, floats: Floats) -> None:
    """Raise `InputError` for a weight of `dense` that is beyond float16, unless it is no float any
    more in what is `planned`."""
    left = dict(planned.module.named_parameters())
    for name, parameter in dense.module.named_parameters():
        if name in left:
            _check(name, parameter, floats)


def in_float16(model: VitModel, floats: Floats) -> VitModel:
    """A copy of `model` whose matrices are stored in float16, where `floats` says so.

    Those of which float16 would leave little, because they are nearly 0, stay float32.

    Raises `InputError` for a weight beyond float16.
    """
    if floats == "float32":
        return model
    module = copied(model.module)
    half, coded = list(model.architecture.half), model.architecture.coded
    for name, parameter in module.named_parameters():
        _check(name, parameter, floats)
        decided = name in half or name in coded
        if parameter.ndim > 1 and not decided and quantizer.keeps_in_half(parameter):
            parameter.copy_(parameter.half())
            half.append(name)
    architecture = model.architecture.model_copy(update={"half": tuple(half)})
    return replace(model, module=module, architecture=architecture)


def _check(name: str, weight: Tensor, floats: Floats) -> None:
    largest = float(weight.abs().max())
    if floats != "float32" and largest > _LARGEST:
        raise InputError(
            f"export.floats: {name} holds {largest:g}, and {floats} ends at {_LARGEST:g}; "
            "take float32"
        )
