"""Powers of √2 (RepQ-ViT, 2212.08254, section 3.3): two steps to each factor of two."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from vitcompress.methods.grids import Quantizer, ends
from vitcompress.methods.grids.log2 import log2


def candidates(sample: Tensor, bits: int) -> Iterator[Quantizer]:
    return (partial(log2, bits=bits, largest=high, steps=2) for _, high in ends(sample))
