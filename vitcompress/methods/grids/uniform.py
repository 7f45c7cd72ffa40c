"""Evenly spaced values."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from vitcompress.methods.grids import Quantizer, ends
from vitcompress.methods.quantizer import activation_parameters, quantize_activation


def uniform(x: Tensor, bits: int, low: Tensor, high: Tensor) -> Tensor:
    """Evenly spaced values that span [low, high] and hold zero: at 8 bits those of the kernels."""
    scale, zero_point = activation_parameters(low, high, bits)
    return quantize_activation(x, scale, zero_point, bits) * scale


def candidates(sample: Tensor, bits: int) -> Iterator[Quantizer]:
    return (partial(uniform, bits=bits, low=low, high=high) for low, high in ends(sample))
