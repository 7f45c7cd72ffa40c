"""Zero and powers of two of either sign, so that products are shifts (ShiftAddViT, 2306.06446).

In 5 bits, whose 15 powers 8 bits do not hold, sums of two powers or zeros (additive powers of two,
1909.13144, equation 5, with two terms of two bits).
"""

import torch
from torch import Tensor

from vitcompress.methods.codebooks import Codebook

_TERMS = (0, 32, 8, 2), (0, 16, 4, 1)


def levels(bits: int) -> Tensor:
    """int8 [2^bits]; the largest one twice, as zero takes two of as many codes."""
    if bits == 5:
        sizes = sorted(a + b for a in _TERMS[0] for b in _TERMS[1])[1:]
    else:
        sizes = [1 << power for power in range((1 << (bits - 1)) - 1)]
    below = [-size for size in reversed(sizes)]
    return torch.tensor([*below, 0, *sizes, sizes[-1]], dtype=torch.int8)


CODEBOOK = Codebook((3, 4, 5), levels)
