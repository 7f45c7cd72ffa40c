"""Minus one, zero and one: five weights to a byte, 1.6 bits each (ternary weight networks,
1605.04711)."""

import torch

from vitcompress.methods.codebooks import Codebook

CODEBOOK = Codebook((2,), lambda _: torch.tensor([-1, 0, 1], dtype=torch.int8))
