"""What a stage may use beside the model: the dense one, images, randomness, progress, the cache."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar, cast

import torch
from torch import Tensor

from vitcompress import parallel, targets
from vitcompress.console import note, track
from vitcompress.data.images import Batch, ImageSet, batches, dealt_batches
from vitcompress.data.preprocess import Preprocess
from vitcompress.errors import InputError
from vitcompress.measure.latencies import LatencyTable
from vitcompress.memory import Room, in_memory
from vitcompress.model.architecture import VitModel
from vitcompress.stages.cache import Cache, latencies

BATCH = 16

T = TypeVar("T")


class Shared:
    """What stages found out about a model, for those that ask the same of it after them: the latest
    alone, since statistics are large."""

    def __init__(self) -> None:
        self._latest: tuple[VitModel, str, object] | None = None

    def found(self, model: VitModel, asked: str, find: Callable[[], T]) -> T:
        """What `find` gives or, asked the same of the same model last time, gave."""
        if self._latest is None or self._latest[0] is not model or self._latest[1] != asked:
            self._latest = None  # two of them at once may be more than there is room for
            self._latest = (model, asked, find())
        return cast(T, self._latest[2])


@dataclass(frozen=True)
class Context:
    """The dense model, images, seed, device, progress and cache of one run.

    `dense`: the model before all stages, on the CPU. `max_unreadable`: the share of images that may
    be unreadable before the run stops. `evaluation`: images to be shown; a stage measures nothing
    on them. `recovery`: more images to train on. `reserve`: images like those of `calibration`, of
    which no stage learns; None where none were held back for a stage to come. `target`: the runtime
    that latencies are of. `room`: where large statistics are kept. `shared`: where stages are
    carried out again and again, what they need not find out twice. `names`: what classes are
    called, by their numbers.
    """

    dense: VitModel
    calibration: ImageSet | None
    preprocess: Preprocess
    seed: int
    device: torch.device
    cache: Cache
    max_unreadable: float = 0.01
    evaluation: ImageSet | None = None
    recovery: ImageSet | None = None
    reserve: ImageSet | None = None
    target: str = targets.DEFAULT
    room: Room = in_memory
    shared: Shared | None = None
    names: Callable[[int], str] = "class {}".format

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

        `images`: how many of them at most. Of several processes each gets batches of its own: what
        is made of them has to be put together, see `parallel`.
        """
        return (batch.pixels for batch in self.labelled_batches(description, images))

    def labelled_batches(self, description: str, images: int | None = None) -> Iterator[Batch]:
        """The same with their labels, where the images have any, and their names."""
        if parallel.alone():
            yield from self._all_batches(description, images)
            return
        total = -(-min(len(self.images), images or len(self.images)) // BATCH)
        stream = dealt_batches(
            self.images, self.preprocess, BATCH, max_unreadable=self.max_unreadable, most=images
        )
        yield from self.track(stream, description, len(range(total)[:: parallel.world()]))

    def shared_batches(self, description: str, images: int | None = None) -> Iterator[Tensor]:
        """As `calibration_batches`, but every process gets all of them."""
        return (batch.pixels for batch in self._all_batches(description, images))

    def _all_batches(self, description: str, images: int | None = None) -> Iterator[Batch]:
        left = min(len(self.images), len(self.images) if images is None else images)
        stream = batches(self.images, self.preprocess, BATCH, max_unreadable=self.max_unreadable)
        for batch in self.track(stream, description, -(-left // BATCH)):
            yield batch.first(left)
            left -= len(batch.names)
            if left <= 0:
                return

    def shown(self, images: int) -> Batch:
        """A few images to draw, evaluation images where there are any."""
        drawn = self.evaluation or self.images
        return next(batches(drawn, self.preprocess, images, max_unreadable=self.max_unreadable))

    def split(self, held: int) -> "tuple[Context, Context]":
        """The same with all calibration images but the last `held`, and with these."""
        images, rest = self.images, len(self.images) - held
        parts = (images.subset(part) for part in (range(rest), range(rest, len(images))))
        fit, back = (replace(self, calibration=part) for part in parts)
        return fit, back

    def once(self, model: VitModel, asked: str, find: Callable[[], T]) -> T:
        """What `find` gives of `model`, or gave where it was `asked` the same before."""
        if self.shared is None:
            return find()
        return self.shared.found(model, f"{asked} {self.calibration_fingerprint}", find)

    def say(self, text: str) -> None:
        note(f"  {text}")

    def track(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Yield `items`, of which there are `total`, and show how far that is."""
        return track(items, description, total)

    def latencies(self) -> AbstractContextManager[LatencyTable]:
        """A table of latencies of this machine to read and fill; what is new in it is kept."""
        return latencies(self.cache, self.target)
