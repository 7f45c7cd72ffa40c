"""Quantizers and the exact arithmetic of the integer kernels that use them.

Weights are codes, which stand for whole numbers (levels), times a step: one float scale for each
output channel, times a small whole number for each group of inputs where there are groups, so that
the kernels still see 8-bit integers. Activations are unsigned 8-bit with a zero point, one scale
per tensor, as onnxruntime's QuantizeLinear and DynamicQuantizeLinear define them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import pack, unpack

ACTIVATION_LEVELS = 255

Levels = int | Tensor
"""The whole numbers that codes stand for: a width in bits, for evenly spaced ones; or a table of
them, int8 [3 or 2^bits], ascending (the last ones may be equal), in which 0 is."""


def width(levels: Levels) -> int:
    """The bits that tell so many levels apart."""
    return levels if isinstance(levels, int) else (len(levels) - 1).bit_length()


def weight_range(levels: Levels) -> tuple[int, int]:
    """The least and the largest level: -8 and 7 for 4 bits.

    8 bits leave out -128, so that no code is larger than the others on either side.
    """
    if isinstance(levels, Tensor):
        return int(levels[0]), int(levels[-1])
    limit = (1 << (levels - 1)) - 1
    return (-limit if levels == 8 else -limit - 1), limit


def largest_weight(bits: int) -> int:
    """The largest magnitude of a level of so many bits, times the multiplier of its group.

    With 4 bits or less ±64: so small weights cannot saturate the kernels of processors without
    VNNI, which add pairs of products in 16 bits.
    """
    return 64 if bits <= 4 else 127


def largest_multiplier(levels: Levels) -> int:
    """The largest magnitude of a group's multiplier; it fits in 4 signed bits (as -8 … 7)."""
    return min(8, largest_weight(width(levels)) // max(map(abs, weight_range(levels))))


def grouped(levels: Levels, group: int | None) -> int | None:
    """How many inputs share a multiplier: none where there would be one multiplier only."""
    return group if largest_multiplier(levels) > 1 else None


def weight_scale(
    weight: Tensor, levels: Levels, importance: Tensor | None = None, group: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """The scale of each output channel, and the multipliers of its groups of inputs.

    The step of a weight is scale · multiplier; it is sought for the least mean squared rounding
    error: the clip on a grid of fractions of the largest magnitude. Steps may be negative, which
    turns the side with one code more to the longer tail.

    Args:
        weight: [out, in].
        levels: of the codes.
        importance: [in], weights of the squared errors (the mean square of each input).
        group: how many inputs share a multiplier; None for one step a channel.

    Returns:
        Scale [out], not zero; multipliers int8 [groups, out], whole and not zero, or None.
    """
    ones = torch.ones(weight.shape[1]) if importance is None else importance
    empty = weight.abs().amax(1) == 0  # any scale will do: one that float16 holds
    if group is None:
        return _best_steps(weight[:, None], ones[None], levels)[:, 0].masked_fill(empty, 1.0), None
    groups = -(-weight.shape[1] // group)
    missing = groups * group - weight.shape[1]
    inputs = F.pad(weight, (0, missing)).view(len(weight), groups, group)
    weights = F.pad(ones, (0, missing)).view(groups, group)
    wanted = _best_steps(inputs, weights, levels)
    scale, multipliers = _factored(inputs, weights, wanted, levels)
    return scale.masked_fill(empty, 1.0), multipliers.T.contiguous().to(torch.int8)


def _best_steps(grouped: Tensor, importance: Tensor, levels: Levels) -> Tensor:
    """Signed float steps [out, groups] of least error, of `grouped` weights [out, groups, n]."""
    low, high = weight_range(levels)
    far, narrowest = max(-low, high), 0.4 if isinstance(levels, int) else 0.2
    largest = grouped.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny * 256)
    best = largest / max(high, 1)
    least = _rounding_error(grouped, best, importance, levels)
    for sign in (1,) if high == -low else (1, -1):
        for fraction in torch.linspace(1.0, narrowest, 31).tolist():
            step = sign * largest * (fraction / far)
            error = _rounding_error(grouped, step, importance, levels)
            better = error < least
            best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best


def _factored(
    grouped: Tensor, importance: Tensor, wanted: Tensor, levels: Levels
) -> tuple[Tensor, Tensor]:
    """A scale for each channel and whole multipliers whose products come near `wanted`."""
    most = largest_multiplier(levels)
    widest = wanted.abs().amax(1)
    best_scale, best = widest, torch.ones_like(wanted)
    least = torch.full_like(widest, torch.inf)
    for divisor in torch.linspace(0.55 * most, most, 8).tolist():
        scale = widest / divisor
        ratio = wanted / scale[:, None]
        choices = []
        for rounded in (ratio.floor(), ratio.ceil()):
            whole = rounded.clamp(-most, min(most, 7))
            whole = torch.where(whole == 0, torch.where(ratio < 0, -1.0, 1.0), whole)
            step = whole * scale[:, None]
            choices.append((_rounding_error(grouped, step, importance, levels), whole))
        (error, whole), (other_error, other) = choices
        nearer = torch.where(other_error < error, other, whole)
        total = torch.minimum(error, other_error).sum(1)
        better = total < least
        least = torch.where(better, total, least)
        best_scale = torch.where(better, scale, best_scale)
        best = torch.where(better[:, None], nearer, best)
    return best_scale, best


def _rounding_error(grouped: Tensor, step: Tensor, importance: Tensor, levels: Levels) -> Tensor:
    """The weighted squared error [out, groups] of rounding to multiples of `step`."""
    wide = step[..., None]
    error = nearest_level(grouped / wide, levels).mul_(wide).sub_(grouped)
    return error.square_().mul_(importance).sum(-1)


def weight_step(
    scale: Tensor, multipliers: Tensor | None, group: int | None, in_features: int
) -> Tensor:
    """The step of each weight: [out, in], or [out, 1] without groups."""
    if multipliers is None or group is None:
        return scale[:, None]
    return scale[:, None] * spread_multipliers(multipliers, group, in_features).T


def spread_multipliers(multipliers: Tensor, group: int, in_features: int) -> Tensor:
    """Multipliers [groups, out] for each input: [in, out], float32."""
    return multipliers.float().repeat_interleave(group, 0)[:in_features]


def fits_half(scale: Tensor) -> bool:
    """Whether float16 holds all of `scale` as normal numbers; not every runtime keeps others."""
    half = scale.half()
    normal = half.abs() >= torch.finfo(torch.float16).smallest_normal
    return bool((normal & half.isfinite()).all())


def keeps_in_half(tensor: Tensor) -> bool:
    """Whether float16 holds `tensor` as a whole to its 11 bits: neither beyond its range (65,504)
    nor so small that little is left of it."""
    error = (tensor.half().float() - tensor).double().norm()
    return bool(error <= 2.0**-11 * tensor.double().norm())  # false for inf and NaN too


def keeps_in_bytes(tensor: Tensor) -> bool:
    """Whether what `byte_codes` makes of `tensor` stands for finite numbers."""
    codes, scale = byte_codes(tensor)
    return bool(tensor.isfinite().all() and (codes * scale).isfinite().all())


def byte_codes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [n, ...] of −127 … 127 and scale float32 [n, 1, ...] of each first index.

    The scale has 16 significant bits, so that products with codes are exact, and what was rounded
    once has the same codes and scale again.
    """
    largest = tensor.abs().flatten(1).amax(1).double().clamp_min(2.0**-100)
    mantissa, exponent = torch.frexp(largest / 127)
    scale = torch.ldexp((mantissa * 2**16).ceil() / 2**16, exponent).float()
    scale = scale.view(-1, *[1] * (tensor.ndim - 1))
    return torch.round(tensor / scale).to(torch.int8), scale


def nearest_level(x: Tensor, levels: Levels) -> Tensor:
    """The level next to each value of `x`, as floats; a new tensor."""
    if isinstance(levels, int):
        return torch.round(x).clamp_(*weight_range(levels))
    table = levels.to(x)
    return table[torch.bucketize(x.contiguous(), (table[1:] + table[:-1]) / 2)]


def round_weight(weight: Tensor, step: Tensor, levels: Levels) -> Tensor:
    """Levels [out, in] (as floats) of `weight` with `step` [out, 1 or in]."""
    return nearest_level(weight / step, levels)


def count(levels: Levels) -> int:
    """How many there are."""
    return 1 << levels if isinstance(levels, int) else len(levels)


def zero_code(levels: Levels) -> int:
    """The code of the level 0."""
    if isinstance(levels, int):
        return 1 << (levels - 1)
    return min(int((levels < 0).sum()), len(levels) - 1)


def pack_levels(whole: Tensor, levels: Levels) -> Tensor:
    """Levels [rows, columns] → the uint8 codes [packed rows, columns] that stand for them."""
    if isinstance(levels, int):
        codes = whole + zero_code(levels)
    else:
        codes = torch.searchsorted(levels, whole.to(levels.dtype).contiguous())
    return pack(codes.to(torch.uint8), count(levels))


def unpack_levels(packed: Tensor, levels: Levels, rows: int) -> Tensor:
    """The inverse of `pack_levels`: int16 [rows, columns]."""
    codes = unpack(packed, count(levels), rows)
    if isinstance(levels, int):
        return codes.to(torch.int16) - zero_code(levels)
    return levels.to(torch.int16)[codes.int()]


def pack_weight(whole: Tensor, levels: Levels) -> Tensor:
    """Levels [out, in] → packed uint8 [packed rows of in, out], the layout of a MatMul."""
    return pack_levels(whole.T, levels)


def unpack_weight(packed: Tensor, levels: Levels, in_features: int) -> Tensor:
    """The inverse of `pack_weight`: levels [out, in], float32."""
    return unpack_levels(packed, levels, in_features).T.to(torch.float32)


MULTIPLIER_BITS = 4


def pack_multipliers(multipliers: Tensor) -> Tensor:
    """Multipliers int8 -8 … 7 [groups, out] → packed uint8 [packed groups, out]."""
    return pack_levels(multipliers, MULTIPLIER_BITS)


def unpack_multipliers(packed: Tensor, groups: int) -> Tensor:
    """The inverse of `pack_multipliers`, int8."""
    return unpack_levels(packed, MULTIPLIER_BITS, groups).to(torch.int8)


def whole_weight(
    codes: Tensor, multipliers: Tensor | None, levels: Levels, group: int, in_features: int
) -> Tensor:
    """The 8-bit whole weights [out, in] (as floats) of packed codes and packed multipliers."""
    whole = unpack_weight(codes, levels, in_features)
    if multipliers is None:
        return whole
    groups = -(-in_features // group)
    return whole * spread_multipliers(unpack_multipliers(multipliers, groups), group, in_features).T


def activation_parameters(low: Tensor, high: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (a code, float32) of the range [low, high] widened to hold 0.

    The definition of ONNX's DynamicQuantizeLinear; an empty range has scale 1.
    """
    levels = (1 << bits) - 1
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / levels
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = torch.round((-low / scale).clamp(0, levels))
    return scale, zero_point


def quantize_activation(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8) -> Tensor:
    """Codes minus the zero point, as floats; halves round to even, as QuantizeLinear does."""
    low, high = -zero_point, (1 << bits) - 1 - zero_point
    return torch.clamp(torch.round(x / scale), low, high)


def rounded_input(x: Tensor, static_range: tuple[Tensor, Tensor] | None, terms: int = 1) -> Tensor:
    """`x` as the integer kernels see it; arguments as of `integer_linear`."""
    scale, zero_point = static_range or activation_parameters(x.amin(), x.amax())
    rounded = quantize_activation(x, scale, zero_point) * scale
    if terms == 1:
        return rounded
    rest_scale, rest_zero_point = rest_range(scale)
    return rounded - quantize_activation(rounded - x, rest_scale, rest_zero_point) * rest_scale


def integer_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor,
    static_range: tuple[Tensor, Tensor] | None,
    terms: int = 1,
    residual_tokens: int | None = None,
) -> Tensor:
    """A Linear as the integer kernels compute it, [..., out]: exact sums, then a rescale.

    Args:
        x: [..., in].
        codes: whole weights, [out, in]: signed codes, times their multipliers.
        scale: [out], of these.
        bias: [out].
        static_range: scale and zero point of the input, or None to take them from `x`.
        terms: 1, or 2 to quantize also what the first quantization left over, in a second sum with
            the same weights: an input of nearly 16 bits for twice the work.
        residual_tokens: with 2 terms, how many leading tokens of x [..., tokens, in] have the
            second (None: all inputs).
    """
    if static_range is None:
        static_range = activation_parameters(x.amin(), x.amax())
    x_scale, zero_point = static_range
    x_codes = quantize_activation(x, x_scale, zero_point)
    output = whole_sums(x_codes, codes) * (x_scale * scale) + bias
    if terms == 1:
        return output
    few = slice(None) if residual_tokens is None else (..., slice(residual_tokens), slice(None))
    rest_scale, rest_zero_point = rest_range(x_scale)
    excess = x_codes[few] * x_scale - x[few]
    rest_codes = quantize_activation(excess, rest_scale, rest_zero_point)
    output[few] -= whole_sums(rest_codes, codes) * (rest_scale * scale)
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
