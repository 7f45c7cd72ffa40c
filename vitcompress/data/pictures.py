"""Small pictures as data URIs, so that a report can hold them."""

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

PNG_PREFIX = "data:image/png;base64,"
JPEG_PREFIX = "data:image/jpeg;base64,"

_EDGE = 0.4  # brightness of the lines between tokens

# The ends of the scale of a heat map, as red, green and blue.
_LOW, _HIGH = np.array((33, 102, 172)), np.array((178, 24, 43))


def photograph(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: int) -> str:
    """Prepared `pixels` [C, H, W] as they looked before, `size` pixels high."""
    return _encoded(_photograph(pixels, mean, std, size))


def thumbnail(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: int) -> str:
    """As `photograph`, in fewer bytes: with the losses of JPEG."""
    return _jpeg(_photograph(pixels, mean, std, size))


def token_map(
    pixels: Tensor, tokens: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: int
) -> str:
    """`photograph`, with each token one colour, the mean of its patches, and edges between tokens.

    `tokens` [rows, columns]: the number of the token that each patch belongs to.
    """
    image = np.asarray(_photograph(pixels, mean, std, size))
    across = np.arange(image.shape[1]) * tokens.shape[1] // image.shape[1]
    down = np.arange(image.shape[0]) * tokens.shape[0] // image.shape[0]
    token = tokens.cpu().numpy()[down[:, None], across]
    _, token = np.unique(token, return_inverse=True)
    token = token.reshape(image.shape[:2])
    sums = np.zeros((int(token.max()) + 1, *image.shape[2:]))
    np.add.at(sums, token, image)
    counts = np.bincount(token.ravel()).reshape(-1, *[1] * (sums.ndim - 1))
    drawn = (sums / counts)[token]
    drawn[1:][token[1:] != token[:-1]] *= _EDGE
    drawn[:, 1:][token[:, 1:] != token[:, :-1]] *= _EDGE
    return _encoded(Image.fromarray(drawn.round().astype(np.uint8)))


def heat_map(
    pixels: Tensor, values: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: int
) -> str:
    """`thumbnail` in grey, with `values` [rows, columns] over it, blue where negative and red where
    positive: the deeper, the nearer to the largest magnitude."""
    grey = _photograph(pixels, mean, std, size).convert("L")
    share = values.float().cpu().numpy() / max(float(values.abs().max()), 1e-30)
    share = np.asarray(Image.fromarray(share).resize(grey.size, Image.Resampling.BILINEAR))
    colour = np.where(share[..., None] < 0, _LOW, _HIGH)
    drawn = np.asarray(grey)[..., None] * (1 - np.abs(share)[..., None])
    drawn = drawn + colour * np.abs(share)[..., None]
    return _jpeg(Image.fromarray(drawn.round().astype(np.uint8)))


def _photograph(
    pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: int
) -> Image.Image:
    values = pixels.cpu().numpy().transpose(1, 2, 0) * np.array(std) + np.array(mean)
    if len(mean) not in (1, 3):
        values = _shown(values)
    image = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8).squeeze())
    width = max(1, round(size * image.width / image.height))
    return image.resize((width, size), Image.Resampling.BOX)


def _shown(values: np.ndarray) -> np.ndarray:
    """Channels that no screen has, [H, W, C]: the first three of four as colours, else the mean of
    all in grey; from 0 for what is darker than 98 % of the values to 1 for what is brighter."""
    shown = values[..., :3] if values.shape[2] == 4 else values.mean(2, keepdims=True)
    low, high = np.percentile(shown, (2, 98))
    stretched: np.ndarray = (shown - low) / max(high - low, 1e-12)
    return stretched


def _encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return PNG_PREFIX + base64.b64encode(file.getvalue()).decode()


def _jpeg(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=72, optimize=True)
    return JPEG_PREFIX + base64.b64encode(file.getvalue()).decode()
