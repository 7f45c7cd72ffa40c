"""Tensors as the files of a model will hold them."""

from dataclasses import replace

from torch import Tensor

from vitcompress.methods import quantizer
from vitcompress.model.architecture import VitModel


def as_stored(model: VitModel) -> VitModel:
    """`model`, whose tensors have changed, rounded to what is stored of them (in place).

    Tensors that float16 or 8-bit codes no longer hold are stored in float32.
    """
    state = model.module.state_dict()
    half = tuple(n for n in model.architecture.half if _fits_half(n, state[n]))
    coded = tuple(n for n in model.architecture.coded if quantizer.keeps_in_bytes(state[n]))
    for name in half:
        state[name].copy_(state[name].half())
    for name in coded:
        codes, scale = quantizer.byte_codes(state[name])
        state[name].copy_(codes * scale)
    stored = model.architecture.model_copy(update={"half": half, "coded": coded})
    return replace(model, architecture=stored)


def _fits_half(name: str, tensor: Tensor) -> bool:
    """Scales of codes are divided by, at run time: float16 has to hold each of them."""
    fits = quantizer.fits_half if name.endswith(".scale") else quantizer.keeps_in_half
    return fits(tensor)
