"""Names that recipes, methods and descriptions of models share; nothing heavy is imported here."""

from typing import Annotated, Literal

from vitcompress.registry import OneOf

Activations = Literal["static", "dynamic"]
"""When the range of a quantized layer's input is taken: beforehand, or from each batch."""

MERGING = "vitcompress.methods.merging"
"""The package of ways to merge tokens."""

MergeMethod = Annotated[str, OneOf(MERGING)]
"""How tokens are chosen and merged."""
