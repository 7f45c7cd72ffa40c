"""Powers of two with a shift (I&S-ViT, 2311.10126, section 4.1)."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from vitcompress.methods.grids import Quantizer

_ETAS = (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0)


def shift_uniform_log2(x: Tensor, bits: int, eta: float, low: Tensor, high: Tensor) -> Tensor:
    """2^exponent − eta, for x ≥ 0, exponents being 2^bits even steps from `low` to `high`, rounded.

    log2(x + eta) is quantized uniformly, and powers of two stay shifts because exponents are whole.
    Where the steps are smaller than 1 several codes fall on one value, and more bits bring nothing.
    """
    levels = (1 << bits) - 1
    step = ((high - low) / levels).clamp_min(torch.finfo(torch.float32).tiny)
    codes = torch.round((torch.log2(x + eta) - low) / step).clamp(0, levels)
    return torch.exp2(torch.round(low + codes * step)) - eta


def candidates(sample: Tensor, bits: int) -> Iterator[Quantizer]:
    for eta in _ETAS:
        low, high = torch.log2(sample + eta).aminmax()
        yield partial(shift_uniform_log2, bits=bits, eta=eta, low=low, high=high)
