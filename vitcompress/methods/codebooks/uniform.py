"""Evenly spaced levels."""

from vitcompress.methods.codebooks import Codebook

CODEBOOK = Codebook((2, 3, 4, 5, 6, 7, 8), lambda bits: bits)
