"""Views of images: random crops and flips, the same for whoever asks for the same step.

A few images give many inputs. They are decoded once, somewhat larger than the model takes them,
into a file.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from vitcompress import parallel
from vitcompress.data.images import ImageSet, batches
from vitcompress.data.preprocess import Preprocess
from vitcompress.errors import InputError
from vitcompress.model.anatomy import State
from vitcompress.stages.context import BATCH, Context
from vitcompress.stages.states import StateFile

_MARGIN = 1.15  # how much larger than the input images are kept
_ASPECT = 1.1  # how much a crop may be stretched
_INTERPOLATIONS = {"nearest": "nearest", "bilinear": "bilinear"}  # of tensors; else bicubic
_ORDER, _CROPS = 0, 1  # what is drawn


class Originals:
    """Images decoded and normalised, `_MARGIN` times as large as the model takes them, float16."""

    def __init__(self, sets: Iterable[ImageSet], context: Context) -> None:
        self._states, self._count = StateFile(), 0
        for images in sets:
            unreadable = context.max_unreadable
            stream = batches(images, _larger(context.preprocess), BATCH, max_unreadable=unreadable)
            for batch in context.track(stream, "reading images", -(-len(images) // BATCH)):
                for pixels in batch.pixels.half():
                    self._states.put(self._count, State(pixels))
                    self._count += 1

    def __len__(self) -> int:
        return self._count

    @cached_property
    def blank(self) -> Tensor:
        """Of the size of all, without values: on the device `meta`."""
        return self[0].to("meta")

    def __getitem__(self, index: int) -> Tensor:
        """Float32 [C, H, W]."""
        return self._states.get(index).x.float()


def _larger(spec: Preprocess) -> Preprocess:
    """All that `spec` takes of an image and what lies around it, at a finer resolution."""
    height, width = (round(_MARGIN * side) for side in spec.input_size)
    return spec.model_copy(update={"input_size": (height, width), "crop_pct": 1.0})


@dataclass(frozen=True)
class Views:
    """Crops of `originals`, of sides between the shares `crops` of theirs.

    All images come once before any comes again. Each `run` of several with the same seed has views
    of its own. What is cut on the `device` is drawn on the CPU, alike for all devices.
    """

    originals: Originals
    preprocess: Preprocess
    crops: tuple[float, float]
    seed: int
    run: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def batch(self, step: int, size: int) -> Tensor:
        """The views of this process out of `size` for the step of this number, [≤ size, C, H, W].

        There must be one or more for each process.
        Raises `InputError` where there is no image.
        """
        if not len(self.originals):
            raise InputError("recover: none of the images can be read")
        view, places = _view(self.preprocess, self.crops), range(step * size, (step + 1) * size)
        own, found = set(parallel.dealt(places)), list[Tensor]()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_drawn(self.seed, _CROPS, step, self.run))
            for place in places:
                if place in own:
                    found.append(view(self.originals[self._index(place)].to(self.device)))
                else:
                    view(self.originals.blank)  # draws as much, and computes nothing
        return torch.stack(found)

    def _index(self, place: int) -> int:
        """The image at `place` of the endless row of shuffled sets."""
        turn, place = divmod(place, len(self.originals))
        random = np.random.default_rng(_drawn(self.seed, _ORDER, turn, self.run))
        return int(random.permutation(len(self.originals))[place])


def _view(spec: Preprocess, crops: tuple[float, float]) -> v2.Compose:
    height, width = spec.input_size
    crop = v2.RandomResizedCrop(
        (height, width),
        scale=(crops[0] ** 2, crops[1] ** 2),
        ratio=(width / height / _ASPECT, width / height * _ASPECT),
        interpolation=InterpolationMode(_INTERPOLATIONS.get(spec.interpolation, "bicubic")),
        antialias=True,
    )
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def _drawn(*numbers: int) -> int:
    """A seed of its own for every row of `numbers`."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
