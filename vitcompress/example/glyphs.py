"""A recognition task drawn on demand: letters and digits, slanted, coloured, on cluttered ground.

Image `i` of a split depends on `(split, i)` alone, so every count and every order sees the same
images, and nothing has to be downloaded.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CLASSES: Final = tuple("0123456789ABCDEFGHJKLMNPRSTUVWXYZ")  # no I, O, Q: too close to 1, 0, 0
IMAGE_SIZE: Final = 48
MEAN: Final = (0.5, 0.5, 0.5)
STD: Final = (0.5, 0.5, 0.5)

CHECKPOINT: Final = Path(__file__).with_name("glyphs.safetensors")  # of the trained model
TIMM_NAME: Final = "vit_tiny_patch16_224"
TIMM_OPTIONS: Final[dict[str, Any]] = {
    "img_size": IMAGE_SIZE,
    "patch_size": 4,
    "embed_dim": 128,
    "depth": 6,
    "num_heads": 2,
}

_SEEDS: Final = {"train": 1, "calibration": 2, "evaluation": 3}

_CANVAS: Final = 2 * IMAGE_SIZE  # glyphs are placed at twice the size, then halved
_FONT_SIZE: Final = 72
_STROKES: Final = (0, 1, 2, 4)  # pixels added to each side of a stroke, at _FONT_SIZE

_TURN: Final = math.radians(20)
_SHEAR: Final = 0.2
_SCALE: Final = (0.7, 1.15)
_SHIFT: Final = 8.0  # pixels of the canvas
_CONTRAST: Final = 110.0  # least distance of the glyph's colour to the ground's, in RGB of 0 to 255
_GRADIENT: Final = 35.0  # at the border, in values of 0 to 255
_NOISE: Final = (2.0, 22.0)  # standard deviation, in values of 0 to 255
_DISTRACTORS: Final = 3


def draw(split: str, count: int, start: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw images `start` to `start + count` of a split, the classes in turn.

    Args:
        split: "train", "calibration" or "evaluation"; they share no image.
        count: how many images.
        start: index of the first image.

    Returns:
        Images, uint8 [count, 48, 48, 3] (height, width, RGB; 0 to 255), and their labels,
        int64 [count], as indices into `CLASSES`.
    """
    images, labels, _ = draw_with_masks(split, count, start)
    return images, labels


def draw_with_masks(
    split: str, count: int, start: int = 0, difficulty: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8]]:
    """Draw as `draw` does, and tell where the glyphs are.

    Args:
        split: "train", "calibration" or "evaluation"; they share no image.
        count: how many images.
        start: index of the first image.
        difficulty: 1 for the task itself; towards 0 the glyphs become upright, white on black.

    Returns:
        Images and labels as from `draw`, and how far each pixel lies within its glyph,
        uint8 [count, 48, 48] (0 to 255).
    """
    seed = _SEEDS[split]
    indices = np.arange(start, start + count, dtype=np.int64)
    labels = indices % len(CLASSES)
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    masks = np.empty((count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for position, (index, label) in enumerate(zip(indices.tolist(), labels.tolist(), strict=True)):
        rng = np.random.default_rng([seed, index])
        images[position], masks[position] = _picture(CLASSES[label], difficulty, rng)
    return images, labels, masks


def _picture(
    character: str, difficulty: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture of a character, with its mask: ground, distractors, glyph, and noise over all."""
    ground = rng.uniform(0, 255, 3)
    colour = _unlike(ground, rng)
    ground = difficulty * ground
    colour = 255 - difficulty * (255 - colour)
    picture = _gradient(ground, difficulty, rng)
    _scribble(picture, difficulty, rng)
    mask = _place(character, difficulty, rng)
    picture.paste(_rgb(colour), mask=mask)
    noise = rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    noisy = np.asarray(picture) + difficulty * rng.uniform(*_NOISE) * noise
    return noisy.clip(0, 255).astype(np.uint8), np.asarray(mask)


def _unlike(ground: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A random colour that stands out from the ground."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - ground) >= _CONTRAST:
            return colour


def _gradient(
    ground: NDArray[np.float64], difficulty: float, rng: np.random.Generator
) -> Image.Image:
    """A ground that shades linearly, across the picture, in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-1, 1, IMAGE_SIZE)
    ramp: NDArray[np.float64] = np.cos(angle) * axis[:, None] + np.sin(angle) * axis
    tint = difficulty * rng.uniform(-_GRADIENT, _GRADIENT, 3)
    return Image.fromarray((ground + ramp[..., None] * tint).clip(0, 255).astype(np.uint8))


def _scribble(picture: Image.Image, difficulty: float, rng: np.random.Generator) -> None:
    """Draw up to `_DISTRACTORS` random lines and arcs into the picture."""
    pen = ImageDraw.Draw(picture)
    for _ in range(int(difficulty * rng.integers(_DISTRACTORS + 1))):
        fill = _rgb(rng.uniform(0, 255, 3))
        width = int(rng.integers(1, 3))
        x, y = rng.uniform(0, IMAGE_SIZE, (2, 2)).tolist()
        if rng.random() < 0.5:
            pen.line((x[0], y[0], x[1], y[1]), fill, width)
        else:
            begin, sweep = rng.uniform(0, 360), rng.uniform(60, 240)
            pen.arc((min(x), min(y), max(x), max(y)), begin, begin + sweep, fill, width)


def _place(character: str, difficulty: float, rng: np.random.Generator) -> Image.Image:
    """The coverage of a glyph that is turned, sheared, scaled and shifted: "L" of 48 by 48."""
    turn = difficulty * rng.uniform(-_TURN, _TURN)
    shear = difficulty * rng.uniform(-_SHEAR, _SHEAR)
    across, down = (rng.uniform(*_SCALE) * rng.uniform(0.88, 1.12, 2)) ** difficulty
    shift = difficulty * rng.uniform(-_SHIFT, _SHIFT, 2)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    inverse = np.linalg.inv(rotation @ np.array([[across, shear * across], [0, down]]))
    offset = _CANVAS / 2 - inverse @ (_CANVAS / 2 + shift)
    (a, b), (d, e) = inverse.tolist()
    c, f = offset.tolist()
    glyph = _glyph(character, _STROKES[rng.integers(len(_STROKES))])
    transform = Image.Transform.AFFINE
    placed = glyph.transform(glyph.size, transform, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    return placed.reduce(2)


@cache
def _glyph(character: str, stroke: int) -> Image.Image:
    """An upright glyph in the middle of an "L" canvas: 255 where it covers."""
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    font = ImageFont.load_default(_FONT_SIZE)
    left, top, right, bottom = font.getbbox(character, stroke_width=stroke)
    corner = (_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2
    ImageDraw.Draw(canvas).text(corner, character, 255, font, stroke_width=stroke)
    return canvas


def _rgb(colour: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = colour.astype(int).tolist()
    return red, green, blue
