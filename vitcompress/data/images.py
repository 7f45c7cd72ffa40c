"""Sets of images: opened from a source, labelled, sampled, and streamed in batches."""

import hashlib
import os
import random
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitcompress import parallel
from vitcompress.console import note
from vitcompress.data.decoding import Pixels, Prepared, decode
from vitcompress.data.labels import labels_of
from vitcompress.data.preprocess import Preprocess, model_input
from vitcompress.data.sources import Label, list_source
from vitcompress.errors import InputError, ShortageError, lacks_memory
from vitcompress.lines import one_line, printable

if TYPE_CHECKING:
    import torch

_WORKERS = min(4, max(2, os.cpu_count() or 2))
_AHEAD = 4 * _WORKERS  # images decoded or being decoded that the consumer has not taken yet


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, read one at a time.

    `names` are relative to the source. `num_classes` is the number of lines in the classes file or
    of class folders; it is None without labels, and where the source stores labels as numbers
    without saying how many there are. `skipped` fills as `batches` meets unreadable images: the
    name and the reason of each, for the report.
    """

    source: str
    names: list[str]
    labels: list[Label] | None
    num_classes: int | None
    fetch: Callable[[int], bytes]
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Pixels:
        """Decode one image; whatever the file system or `decode` raises comes through."""
        return decode(self.fetch(index))

    def subset(self, indices: Sequence[int]) -> "ImageSet":
        """The images at `indices`, in that order; what is skipped of them is skipped of these."""
        labels = self.labels
        return replace(
            self,
            names=[self.names[i] for i in indices],
            labels=None if labels is None else [labels[i] for i in indices],
            fetch=lambda index: self.fetch(indices[index]),
        )

    def readable(self) -> list[int]:
        """The places of the images of which it is not known that they are unreadable."""
        return [index for index, name in enumerate(self.names) if name not in self.skipped]

    def restricted(self, kept: Sequence[int]) -> "ImageSet":
        """The images of the classes `kept`, labelled with the places of these among them."""
        assert self.labels is not None
        places = {label: place for place, label in enumerate(kept)}
        found = self.subset([i for i, label in enumerate(self.labels) if label in places])
        assert found.labels is not None
        labels = list[Label](places[label] for label in found.labels)  # type: ignore[index]
        return replace(found, labels=labels, num_classes=len(kept))

    def sample(self, limit: int | None, seed: int | None = None) -> "ImageSet":
        """At most `limit` of the images, as `open_images` takes them."""
        groups = [None] * len(self) if self.labels is None else self.labels
        return self.subset(_sample(groups, limit, seed))

    def fingerprint(self) -> str:
        """Return the sha256 (hex) over names, labels and file contents, in order.

        Equal sets have equal fingerprints wherever they are stored. A file that cannot be read
        counts as empty.
        """
        total = hashlib.sha256()
        for index, name in enumerate(self.names):
            try:
                content = self.fetch(index)
            except OSError:
                content = b""
            label = None if self.labels is None else self.labels[index]
            # repr quotes the name and the digest has a fixed length: no two records look alike
            total.update(f"{name!r} {label} {hashlib.sha256(content).hexdigest()}\n".encode())
        return total.hexdigest()


@dataclass(frozen=True, eq=False)
class Batch:
    """`pixels` float32 [B, C, H, W], `labels` int64 [B] or [B, outputs] or None, B `names`."""

    pixels: "torch.Tensor"
    labels: "torch.Tensor | None"
    names: list[str]

    def first(self, count: int) -> "Batch":
        labels = None if self.labels is None else self.labels[:count]
        return Batch(self.pixels[:count], labels, self.names[:count])


def open_images(
    source: str | Path,
    *,
    classes: Path | None = None,
    labelled: bool | None,
    limit: int | None = None,
    seed: int | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageSet:
    """Open the images of a folder, a .tar, a .npz or `example:glyphs/{calibration,evaluation}`.

    A folder has one folder a class, or, when no labels are asked for, images at any depth, or
    nothing but .tar files. A .tar has class folders or webdataset members KEY.jpg, KEY.cls. A .npz
    has `images` (or `x`) [n, H, W, C], [n, C, H, W] or [n, H, W] and `labels` (or `y`): integers
    [n], or 0 and 1 [n, outputs].

    `labelled`: whether labels are asked for; None: where all images have one.

    Labels are those of `labels.labels_of`: the place of a class in the file `classes`, among the
    `class_names` of the model, or in timm's order of folder names.

    `limit` takes that many images, in sorted order. With a `seed` they are a random sample spread
    over the classes as evenly as it can be; without one they are evenly spaced in sorted order.

    Raises InputError, naming the file or folder, when there are no images to open or no labels.
    """
    listing = list_source(str(source))
    if labelled is None:
        labelled = None not in listing.classes
    labels = num_classes = None
    if labelled:
        labels, num_classes = labels_of(listing, str(source), classes, class_names)
    chosen = _sample(listing.classes, limit, seed)
    return ImageSet(
        source=printable(str(source)),
        names=[listing.names[i] for i in chosen],
        labels=None if labels is None else [labels[i] for i in chosen],
        num_classes=num_classes,
        fetch=lambda index: listing.fetch(chosen[index]),
    )


def _sample(groups: Sequence[Hashable], limit: int | None, seed: int | None) -> Sequence[int]:
    """Return the places of the images to take, in ascending order."""
    count = len(groups)
    if limit is None or limit >= count:
        return range(count)
    if limit < 1:
        raise InputError(f"a limit of {limit} images leaves none; give at least 1")
    if seed is None:
        return [i * count // limit for i in range(limit)]
    shuffle = random.Random(seed).shuffle
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    order = list(members.values())
    shuffle(order)
    for group_members in order:
        shuffle(group_members)
    # Everyone's first image, then everyone's second, …: (round, turn) sorts them.
    rounds = [(r, turn, i) for turn, group in enumerate(order) for r, i in enumerate(group)]
    return sorted(i for _, _, i in sorted(rounds)[:limit])


def batches(
    images: ImageSet, spec: Preprocess, batch_size: int, *, max_unreadable: float = 0.01
) -> Iterator[Batch]:
    """Stream prepared batches in the order of `images`; the last one may be smaller.

    Images are decoded by a few threads a bounded number ahead, so memory does not depend on how
    many there are. An unreadable image is left out, named on the console once, and noted in
    `images.skipped`. Raises InputError when more than max(1, `max_unreadable` × their number), or
    all of them, are unreadable, and for one that has not the channels of the model.
    """
    import torch

    if batch_size < 1:
        raise InputError(f"a batch size of {batch_size} is not possible; give at least 1")
    allowed = max(1, int(max_unreadable * len(images)))
    pixels: list[torch.Tensor] = []
    places: list[int] = []

    def batch() -> Batch:
        labels = None
        if images.labels is not None:
            labels = torch.tensor([images.labels[i] for i in places], dtype=torch.int64)
        return Batch(torch.stack(pixels), labels, [images.names[i] for i in places])

    for index, result in enumerate(_prepared(images, spec)):
        if isinstance(result, str):
            _skip(images, index, result, allowed)
            continue
        pixels.append(result)
        places.append(index)
        if len(places) == batch_size:
            yield batch()
            pixels, places = [], []
    if places:
        yield batch()


def dealt_batches(
    images: ImageSet,
    spec: Preprocess,
    batch_size: int,
    *,
    max_unreadable: float = 0.01,
    most: int | None = None,
) -> Iterator[Batch]:
    """Of the `batches` of the first images, `most` of them, those that this process is to take.

    Of several processes, each decodes its own images alone; which are unreadable must be known,
    see `survey`.
    """
    readable = images.readable()[:most]
    parts = [readable[i : i + batch_size] for i in range(0, len(readable), batch_size)]
    own = [index for part in parallel.dealt(parts) for index in part]
    if own:
        yield from batches(images.subset(own), spec, batch_size, max_unreadable=max_unreadable)


def survey(images: ImageSet, spec: Preprocess, *, max_unreadable: float = 0.01) -> None:
    """Find out in all processes together which of `images` are unreadable.

    Raises `InputError` as `batches` does.
    """
    own = list(parallel.dealt(range(len(images))))
    prepared = zip(own, _prepared(images.subset(own), spec), strict=True)
    unreadable = {index: result for index, result in prepared if isinstance(result, str)}
    found = {index: why for each in parallel.everybody(unreadable) for index, why in each.items()}
    for index in sorted(found):
        _skip(images, index, found[index], max(1, int(max_unreadable * len(images))))


def check_channels(images: ImageSet, spec: Preprocess) -> None:
    """Raise `InputError` where the first of `images` has not the channels of the model, or was
    prepared in another size."""
    if not isinstance(_prepare(images, 0, spec), str):
        image = images.read(0)
        if isinstance(image, Prepared) and image.values.shape[1:] != spec.input_size:
            size = "×".join(map(str, spec.input_size))
            raise InputError(
                f"{images.source}: has prepared pixels {list(image.values.shape)}, and the model "
                f"takes {size}; prepare them so, or set data.input_size"
            )


def _prepare(images: ImageSet, index: int, spec: Preprocess) -> "torch.Tensor | str":
    """One image prepared; where it is unreadable, the reason. Raises `InputError` for one that is
    intact, and not for this model."""
    try:
        return model_input(images.read(index), spec)
    except InputError as error:
        raise InputError(f"{images.source}: {images.names[index]}: {error}") from error
    except Exception as error:  # decoders of damaged files raise almost anything
        if lacks_memory(error):
            raise ShortageError(f"{images.source}: {images.names[index]}") from error
        return one_line(error)


def _prepared(images: ImageSet, spec: Preprocess) -> "Iterator[torch.Tensor | str]":
    """Yield each image prepared, in order; for an unreadable one, the reason."""

    pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="decode")
    pending: deque[Future[torch.Tensor | str]] = deque()
    try:
        for index in range(len(images)):
            pending.append(pool.submit(_prepare, images, index, spec))
            if len(pending) == _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _skip(images: ImageSet, index: int, reason: str, allowed: int) -> None:
    name = images.names[index]
    if name not in images.skipped:
        images.skipped[name] = reason
        warning = f"warning: {name} is unreadable and left out ({reason})"
        note(warning, style="yellow")
    here = [name for name in images.names if name in images.skipped]
    count = len(here)
    if count > allowed or count == len(images):
        first = ", ".join(here[:3])
        raise InputError(
            f"{images.source}: at least {count} of {len(images)} images are unreadable "
            f"(allowed: {allowed}): {first}"
            f"{', …' if count > 3 else ''}; replace or remove them"
        )
