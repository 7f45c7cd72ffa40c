"""Uniform quantizers and the exact arithmetic of the integer kernels that use them.

Weights are symmetric, one scale per output channel; activations are unsigned 8-bit with a zero
point, one scale per tensor, as onnxruntime's QuantizeLinear and DynamicQuantizeLinear define them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import pack, unpack

ACTIVATION_LEVELS = 255


def weight_limit(bits: int) -> int:
    """The largest magnitude of a symmetric code: 127 for 8 bits."""
    return (1 << (bits - 1)) - 1


def weight_scale(weight: Tensor, bits: int, importance: Tensor | None = None) -> Tensor:
    """The scale of each output channel with the least mean squared rounding error.

    The clip is searched on a grid of fractions of the largest magnitude.

    Args:
        weight: [out, in].
        bits: width of the codes.
        importance: [in], weights of the squared errors (the mean square of each input).

    Returns:
        [out], positive.
    """
    limit = weight_limit(bits)
    largest = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * limit)
    best_scale, best_error = largest / limit, torch.full_like(largest, torch.inf)
    for fraction in torch.linspace(1.0, 0.4, 31).tolist():
        scale = largest * fraction / limit
        error = round_weight(weight, scale, bits) * scale[:, None] - weight
        squared = error.square() if importance is None else error.square() * importance
        total = squared.sum(1)
        better = total < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, total, best_error)
    return best_scale


def round_weight(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Signed codes [out, in] (as floats) of `weight` with one `scale` [out] per output channel."""
    limit = weight_limit(bits)
    return torch.round(weight / scale[:, None]).clamp(-limit, limit)


def pack_weight(codes: Tensor, bits: int) -> Tensor:
    """Signed codes [out, in] → packed uint8 [packed rows of in, out], the layout of a MatMul."""
    return pack((codes.T + (1 << (bits - 1))).to(torch.uint8), bits)


def unpack_weight(packed: Tensor, bits: int, in_features: int) -> Tensor:
    """The inverse of `pack_weight`: signed codes [out, in], float32."""
    return unpack(packed, bits, in_features).T.to(torch.float32) - (1 << (bits - 1))


def activation_parameters(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (0 … 255, float32) of the range [low, high] widened to hold 0.

    The definition of ONNX's DynamicQuantizeLinear; an empty range has scale 1.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / ACTIVATION_LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = torch.round((-low / scale).clamp(0, ACTIVATION_LEVELS))
    return scale, zero_point


def quantize_activation(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Codes minus the zero point, as floats; halves round to even, as QuantizeLinear does."""
    low, high = -zero_point, ACTIVATION_LEVELS - zero_point
    return torch.clamp(torch.round(x / scale), low, high)


def integer_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor,
    static_range: tuple[Tensor, Tensor] | None,
    terms: int = 1,
    fine_tokens: int | None = None,
) -> Tensor:
    """A Linear as the integer kernels compute it, [..., out]: exact sums, then a rescale.

    Args:
        x: [..., in].
        codes: signed, [out, in].
        scale: [out], of the codes.
        bias: [out].
        static_range: scale and zero point of the input, or None to take them from `x`.
        terms: 1, or 2 to quantize also what the first quantization left over, in a second sum with
            the same weights: an input of nearly 16 bits for twice the work.
        fine_tokens: with 2 terms, how many leading tokens of x [..., tokens, in] have the second
            (None: all inputs).
    """
    if static_range is None:
        static_range = activation_parameters(x.amin(), x.amax())
    x_scale, zero_point = static_range
    x_codes = quantize_activation(x, x_scale, zero_point)
    output = whole_sums(x_codes, codes) * (x_scale * scale) + bias
    if terms == 1:
        return output
    few = slice(None) if fine_tokens is None else (..., slice(fine_tokens), slice(None))
    rest_scale, rest_zero_point = rest_range(x_scale)
    rest_codes = quantize_activation(x[few] - x_codes[few] * x_scale, rest_scale, rest_zero_point)
    output[few] += whole_sums(rest_codes, codes) * (rest_scale * scale)
    return output


def rest_range(scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the second term: one step of the first in 256, around zero."""
    return scale / 256, torch.full_like(scale, 128.0)


def whole_sums(x_codes: Tensor, codes: Tensor) -> Tensor:
    """x_codes [..., in] @ codes.T [in, out], both whole numbers, exactly.

    Taken in float32 where no sum can reach 2^24, below which float32 is exact, else in float64.
    """
    if ACTIVATION_LEVELS * codes.abs().sum(1).max() < 2**24:
        return F.linear(x_codes, codes)
    return F.linear(x_codes.double(), codes.double()).float()
