"""Powers of two (FQ-ViT, 2111.13824, section 3.3)."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from vitcompress.methods.grids import Quantizer, ends


def log2(x: Tensor, bits: int, largest: Tensor, steps: int = 1) -> Tensor:
    """largest · 2^(−code / steps), for x ≥ 0; zero has no code and becomes the least value.

    `steps`: to a factor of two.
    """
    codes = torch.round(-steps * torch.log2(x / largest)).clamp(0, (1 << bits) - 1)
    return largest * torch.exp2(-codes / steps)


def candidates(sample: Tensor, bits: int) -> Iterator[Quantizer]:
    return (partial(log2, bits=bits, largest=high) for _, high in ends(sample))
