"""What a stage may use beside the model: images, randomness, progress and the cache."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from vitcompress.console import console, track
from vitcompress.data.images import Batch, ImageSet, batches
from vitcompress.data.preprocess import Preprocess
from vitcompress.errors import InputError
from vitcompress.measure.branches import LatencyTable, table_name

_CACHED_FILES = 4
BATCH = 16


@dataclass(frozen=True)
class Context:
    """Images, seed, device and cache of one run.

    `max_unreadable`: the share of images that may be unreadable before the run stops.
    `evaluation`: images to be shown; a stage measures nothing on them.
    """

    calibration: ImageSet | None
    preprocess: Preprocess
    seed: int
    device: torch.device
    cache: Path
    resume: bool
    max_unreadable: float = 0.01
    evaluation: ImageSet | None = None

    @property
    def images(self) -> ImageSet:
        """The calibration images. Raises `InputError` where the run has none."""
        if self.calibration is None:
            raise InputError("no calibration images: give --calibration DIR, or data.calibration")
        return self.calibration

    @cached_property
    def calibration_fingerprint(self) -> str:
        return f"{self.images.fingerprint()} {self.preprocess.model_dump_json()}"

    def calibration_batches(self, description: str, images: int | None = None) -> Iterator[Tensor]:
        """The calibration images, prepared, float32 [≤ 16, C, H, W], with progress.

        `images`: how many of them at most.
        """
        return (batch.pixels for batch in self.labelled_batches(description, images))

    def labelled_batches(self, description: str, images: int | None = None) -> Iterator[Batch]:
        """The same with their labels, where the images have any, and their names."""
        left = min(len(self.images), len(self.images) if images is None else images)
        stream = batches(self.images, self.preprocess, BATCH, max_unreadable=self.max_unreadable)
        for batch in track(stream, description, -(-left // BATCH)):
            yield batch.first(left)
            left -= len(batch.names)
            if left <= 0:
                return

    def shown(self, images: int) -> Batch:
        """A few images to draw, evaluation images where there are any."""
        drawn = self.evaluation or self.images
        return next(batches(drawn, self.preprocess, images, max_unreadable=self.max_unreadable))

    def say(self, text: str) -> None:
        console.print(f"  {text}")

    def keep(self, file: Path, save: Callable[[Path], None]) -> None:
        """Write `file`, named KIND-KEY, to the cache, where the few newest of each kind stay.

        The cache is a convenience: where it cannot be written, that is said and the run goes on.
        """
        temporary = file.with_suffix(".partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save(temporary)
            temporary.replace(file)
            alike = file.parent.glob(f"{file.name.partition('-')[0]}-*{file.suffix}")
            files = sorted(alike, key=lambda f: f.stat().st_mtime)
            for old in files[:-_CACHED_FILES]:
                old.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.say(f"{file.name} is not kept: {error}")

    @contextlib.contextmanager
    def latencies(self) -> Iterator[LatencyTable]:
        """A table of latencies of this machine to read and fill; what is new in it is kept."""
        file = self.cache / table_name()
        table = LatencyTable.load(file) if self.resume and file.is_file() else LatencyTable()
        known = len(table.grids)
        try:
            yield table
        finally:
            if len(table.grids) > known:
                self.keep(file, table.save)
