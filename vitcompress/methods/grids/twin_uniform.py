"""Two uniform ranges, whose steps differ by a power of two (PTQ4ViT, 2111.12293, section 3.2)."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from vitcompress.methods.grids import Quantizer, ends

_POWERS = range(11)


def twin_uniform(x: Tensor, bits: int, coarse: Tensor, power: int, signed: bool) -> Tensor:
    """The nearest value of two uniform ranges, of the steps `coarse` and coarse / 2^`power`.

    One bit tells the range. The coarse step serves 0 and above; the fine one small values after
    softmax, and where `signed` negative ones after GELU. There a bound between the ranges decides;
    taking the nearest value differs only at that bound.
    """
    half = 1 << (bits - 1)
    fine = coarse / 2**power
    fine_codes = torch.round(x / fine).clamp(*((-half, 0) if signed else (0, half - 1)))
    near, far = fine_codes * fine, torch.round(x / coarse).clamp(0, half - 1) * coarse
    return torch.where((near - x).abs() <= (far - x).abs(), near, far)


def candidates(sample: Tensor, bits: int) -> Iterator[Quantizer]:
    signed, most = bool((sample < 0).any()), (1 << (bits - 1)) - 1
    for _, high in list(ends(sample))[::4]:
        for power in _POWERS:
            yield partial(twin_uniform, bits=bits, coarse=high / most, power=power, signed=signed)
