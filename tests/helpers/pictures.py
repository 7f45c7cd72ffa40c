"""A few tiny pictures of three classes, in the kinds of files that images come from."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitcompress.data.images import Batch, ImageSet, batches
from vitcompress.data.preprocess import Preprocess

SPEC = Preprocess(
    input_size=(8, 8),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    crop_pct=1.0,
    interpolation="bilinear",
)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
LABELS = [0, 0, 1, 1, 1, 2]
CLASSES = ["ant", "bee", "cat"]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_folder(root: Path) -> Path:
    """One folder a class."""
    for i, label in enumerate(LABELS):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(PIXELS[i]))
    return root


def write_npz(path: Path) -> Path:
    np.savez(path, images=PIXELS, labels=np.array(LABELS))
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def together(images: ImageSet, batch_size: int = 4) -> Batch:
    """All batches as one."""
    parts = list(batches(images, SPEC, batch_size))
    labels = [part.labels for part in parts if part.labels is not None]
    return Batch(
        torch.cat([part.pixels for part in parts]),
        torch.cat(labels) if labels else None,
        [name for part in parts for name in part.names],
    )
