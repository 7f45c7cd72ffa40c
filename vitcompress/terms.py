"""Names that recipes, methods and descriptions of models share; nothing heavy is imported here."""

from typing import Literal

Activations = Literal["static", "dynamic"]
"""When the range of a quantized layer's input is taken: beforehand, or from each batch."""

MergeMethod = Literal["tome", "diffrate", "evit", "mctf", "ppt", "fisher"]
"""How tokens are chosen and merged: see `methods.tokens`."""
