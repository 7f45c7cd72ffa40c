"""Integer kernels of processors without VNNI, which add pairs of 8-bit products in 16 bits."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitcompress.errors import InputError
from vitcompress.methods import quantizer

if TYPE_CHECKING:
    from vitcompress.model.architecture import QuantizedLayer

# Two products of an unsigned code with a weight of this size fit in 16 bits, signed.
_LARGEST = 64


def check_weights(layers: "Mapping[str, QuantizedLayer]", runtime: str, other: str = "") -> None:
    """Raise `InputError` for a layer whose pairs of products need more than 16 bits.

    `other`: what else than smaller weights helps, in words.
    """
    for name, layer in layers.items():
        if layer.activations != "float" and _largest(layer) > _LARGEST:
            smaller = "bits: 7" if layer.group is None else "group: null"
            raise InputError(
                f"export.target: {runtime} adds pairs of 8-bit products in 16 bits on this "
                f"processor, and weights of {layer.bits} bits saturate ({name}); {other}give the "
                f"quantize stage {smaller}"
            )


def _largest(layer: "QuantizedLayer") -> int:
    """The largest magnitude that a whole weight of a layer can have."""
    if layer.levels is not None:
        return quantizer.largest_weight(layer.bits)
    code = max(map(abs, quantizer.weight_range(layer.bits)))
    return code if layer.group is None else code * quantizer.largest_multiplier(layer.bits)
