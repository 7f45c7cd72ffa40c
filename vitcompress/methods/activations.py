"""Quantizers of activations to fewer values than fast kernels know: for study, in floats.

Each maps a tensor onto a grid of at most 2^bits values. `fitted` looks for the parameters that
serve a sample best.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from vitcompress.terms import QuantizerKind

from .quantizer import activation_parameters, quantize_activation

Quantizer = Callable[[Tensor], Tensor]
"""x → the values on the grid that stand for it."""

# Shares of a sample that lie outside a range, at both ends together.
_TAILS = (0.0, 1e-5, *(10.0 ** -(quarters / 4) for quarters in range(16, 5, -1)))
_ETAS = (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0)
_POWERS = range(11)


def uniform(x: Tensor, bits: int, low: Tensor, high: Tensor) -> Tensor:
    """Evenly spaced values that span [low, high] and hold zero: at 8 bits those of the kernels."""
    scale, zero_point = activation_parameters(low, high, bits)
    return quantize_activation(x, scale, zero_point, bits) * scale


def log2(x: Tensor, bits: int, largest: Tensor, steps: int = 1) -> Tensor:
    """largest · 2^(−code / steps), for x ≥ 0; zero has no code and becomes the least value.

    One step a factor of two: FQ-ViT (2111.13824, section 3.3). Two steps: the log√2 of RepQ-ViT
    (2212.08254, section 3.3).
    """
    codes = torch.round(-steps * torch.log2(x / largest)).clamp(0, (1 << bits) - 1)
    return largest * torch.exp2(-codes / steps)


def shift_uniform_log2(x: Tensor, bits: int, eta: float, low: Tensor, high: Tensor) -> Tensor:
    """2^exponent − eta, for x ≥ 0, exponents being 2^bits even steps from `low` to `high`, rounded.

    I&S-ViT (2311.10126, section 4.1): log2(x + eta) is quantized uniformly, and powers of two stay
    shifts because exponents are whole. Where the steps are smaller than 1 several codes fall on one
    value, and more bits bring nothing.
    """
    levels = (1 << bits) - 1
    step = ((high - low) / levels).clamp_min(torch.finfo(torch.float32).tiny)
    codes = torch.round((torch.log2(x + eta) - low) / step).clamp(0, levels)
    return torch.exp2(torch.round(low + codes * step)) - eta


def twin_uniform(x: Tensor, bits: int, coarse: Tensor, power: int, signed: bool) -> Tensor:
    """The nearest value of two uniform ranges, of the steps `coarse` and coarse / 2^`power`.

    PTQ4ViT (2111.12293, section 3.2): one bit tells the range. The coarse step serves 0 and above;
    the fine one small values after softmax, and where `signed` negative ones after GELU. There a
    bound between the ranges decides; taking the nearest value differs only at that bound.
    """
    half = 1 << (bits - 1)
    fine = coarse / 2**power
    fine_codes = torch.round(x / fine).clamp(*((-half, 0) if signed else (0, half - 1)))
    near, far = fine_codes * fine, torch.round(x / coarse).clamp(0, half - 1) * coarse
    return torch.where((near - x).abs() <= (far - x).abs(), near, far)


def candidates(kind: QuantizerKind, sample: Tensor, bits: int) -> Iterator[Quantizer]:
    """Quantizers of a kind for values like those of `sample`, of any shape."""
    ends = list(_ends(sample))
    if kind == "uniform":
        yield from (partial(uniform, bits=bits, low=low, high=high) for low, high in ends)
    elif kind in ("log2", "log_sqrt2"):
        steps = 1 if kind == "log2" else 2
        yield from (partial(log2, bits=bits, largest=high, steps=steps) for _, high in ends)
    elif kind == "shift_uniform_log2":
        for eta in _ETAS:
            low, high = torch.log2(sample + eta).aminmax()
            yield partial(shift_uniform_log2, bits=bits, eta=eta, low=low, high=high)
    else:
        signed, most = bool((sample < 0).any()), (1 << (bits - 1)) - 1
        for _, high in ends[::4]:
            for power in _POWERS:
                coarse = high / most
                yield partial(twin_uniform, bits=bits, coarse=coarse, power=power, signed=signed)


def _ends(sample: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Ranges that leave out the shares `_TAILS` of a sample."""
    values = sample.flatten().sort().values
    last = len(values) - 1
    for tail in _TAILS:
        skipped = int(last * tail / 2)
        yield values[skipped], values[last - skipped]


def fitted(
    kind: QuantizerKind, sample: Tensor, bits: int, error: Callable[[Tensor], float] | None = None
) -> Quantizer:
    """The candidate of the least `error`, a function of the quantized sample (None: its MSE)."""

    def squared(quantized: Tensor) -> float:
        return float((quantized - sample).square().mean())

    measure = error or squared
    return min(candidates(kind, sample, bits), key=lambda q: measure(q(sample)))
