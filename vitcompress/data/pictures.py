"""Small pictures as data URIs, so that a report can hold them."""

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

PREFIX = "data:image/png;base64,"

# The ends of the scale of a heat map, and its middle, as red, green and blue.
_LOW, _ZERO, _HIGH = (np.array(c) for c in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))


def photograph(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: int) -> str:
    """Prepared `pixels` [C, H, W] as they looked before, `size` pixels high."""
    values = pixels.cpu().numpy().transpose(1, 2, 0) * np.array(std) + np.array(mean)
    image = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8).squeeze())
    width = max(1, round(size * image.width / image.height))
    return _encoded(image.resize((width, size), Image.Resampling.BOX))


def heat_map(values: Tensor) -> str:
    """`values` [rows, columns] from blue (negative) through white (0) to red (positive).

    The deepest colour is the largest magnitude.
    """
    share = values.double().cpu().numpy() / max(float(values.abs().max()), 1e-30)
    end = np.where(share[..., None] < 0, _LOW, _HIGH)
    colours = _ZERO + np.abs(share)[..., None] * (end - _ZERO)
    return _encoded(Image.fromarray(colours.round().astype(np.uint8)))


def _encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return PREFIX + base64.b64encode(file.getvalue()).decode()
