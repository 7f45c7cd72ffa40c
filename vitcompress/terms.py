"""Names that recipes, methods and descriptions of models share; nothing heavy is imported here."""

from typing import Annotated, Literal

from vitcompress.registry import OneOf

Activations = Literal["static", "dynamic", "float"]
"""What becomes of a quantized layer's input: codes of a range that is taken beforehand, or from
each batch; or nothing: it is multiplied in floats."""

Floats = Literal["float32", "float16_weights", "float16"]
"""What floats of a file are: all float32; weights stored in float16, computed in float32; stored
and computed in float16."""

MERGING = "vitcompress.methods.merging"
"""The package of ways to merge tokens."""

MergeMethod = Annotated[str, OneOf(MERGING)]
"""How tokens are chosen and merged."""

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh"]
"""A function of each value, by timm's name of it."""

Output = Literal["pooled", "token", "average", "joined", "tokens"]
"""Which features are the output of a model without its head: its own pooling of the tokens, the
class token, the average of all patches, these two joined, or each patch by itself."""

AGAINST = {
    **{"top1": 0.5, "map": 0.5, "knn": 0.5, "agreement": 1.0, "neighbours": 1.0},
    **{"cosine": 0.005, "relative_error": 0.01, "bytes": 1.02, "latency": 1.1},
}
"""The keys of `gates.against` where a recipe sets none: figures that the earlier run has."""
