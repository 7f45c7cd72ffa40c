"""Which images a model answers otherwise than before, from outputs that were judged."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitcompress.changes import changes, class_names
from vitcompress.data.images import ImageSet
from vitcompress.data.preprocess import Preprocess
from vitcompress.evaluation import Judged
from vitcompress.tasks import chosen

LOOK = Preprocess(
    input_size=(32, 48),
    mean=(0.5, 0.4, 0.3),
    std=(0.5, 0.5, 0.5),
    crop_pct=1.0,
    interpolation="bicubic",
)
ANSWERS = [0, 0, 1, 1, 2, 2]


def images(count: int, labels: list[int] | None = None) -> ImageSet:
    def fetch(index: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (48, 32), (40 * index, 0, 0)).save(file, "PNG")
        return file.getvalue()

    names = [f"folder{index // 2}/{index}.png" for index in range(count)]
    return ImageSet("x", names, labels and list(labels), None, fetch)


def judged(answers: list[int], labels: tuple[int, ...] | None = None) -> Judged:
    return Judged(5 * np.eye(3, dtype=np.float32)[answers], labels)


def test_answers_that_changed_are_told_with_their_pictures() -> None:
    labels = (0, 1, 1, 1, 0, 2)
    after = [0, 1, 2, 1, 1, 2]  # the second is right now, the third no more, the fifth never
    shown = images(6, list(labels))
    names = class_names(shown, ("zero", "one", "two"), None)
    dense, final = judged(ANSWERS, labels), judged(after, labels)
    found = changes(chosen(None, 3), dense, final, shown, LOOK, names)
    assert (found.images, found.changed, found.lost, found.gained) == (6, 3, 1, 1)
    first, *others = found.shown
    assert first.image == "folder1/2.png"
    assert first.answer is not None
    assert (first.answer.before, first.answer.after, first.answer.label) == ("one", "two", "one")
    assert {each.image for each in others} == {"folder0/1.png", "folder2/4.png"}
    picture = Image.open(io.BytesIO(base64.b64decode(first.picture.partition(",")[2])))
    assert (picture.format, picture.height) == ("JPEG", 96)
    assert abs(picture.getpixel((5, 5))[0] - 80) < 6  # type: ignore[index, operator]
    assert found.classes == ()  # class one has lost an image and won one


def test_classes_that_lost_are_counted() -> None:
    labels = tuple(ANSWERS)
    dense, final = judged(ANSWERS, labels), judged([0, 1, 2, 2, 2, 2], labels)
    names = class_names(images(6, ANSWERS), None, None)
    found = changes(chosen(None, 3), dense, final, images(6, ANSWERS), LOOK, names)
    told = [(each.name, each.images, each.before, each.after) for each in found.classes]
    assert told == [("folder1", 2, 2, 0), ("folder0", 2, 2, 1)]


def test_unreadable_images_shift_nothing() -> None:
    shown = images(4)
    shown.skipped["folder0/0.png"] = "broken"
    found = changes(
        chosen(None, 3), judged([0, 0, 0]), judged([0, 0, 1]), shown, LOOK, lambda n: str(n)
    )
    assert [each.image for each in found.shown] == ["folder1/3.png"]
    assert (found.lost, found.gained, found.classes) == (None, None, ())


def test_of_embeddings_the_lowest_cosines_are_shown() -> None:
    before = np.tile(np.array([[1.0, 0.0]], np.float32), (20, 1))
    angles = np.linspace(0, 1, 20, dtype=np.float32)
    after = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = changes(
        chosen(None, 0), Judged(before, None), Judged(after, None), images(20), LOOK, str
    )
    assert (found.changed, found.measure, len(found.shown)) == (None, "cosine", 12)
    assert [each.image for each in found.shown[:2]] == ["folder9/19.png", "folder9/18.png"]
    assert found.shown[0].value == pytest.approx(np.cos(1))
    assert all(each.answer is None for each in found.shown)


def test_as_many_pictures_as_a_page_bears() -> None:
    found = changes(chosen(None, 3), judged([0] * 300), judged([1] * 300), images(300), LOOK, str)
    assert found.changed == 300
    assert len(found.shown) == 24
    assert sum(len(each.picture) for each in found.shown) < 300_000


def test_classes_are_called_as_best_is_known(tmp_path: Path) -> None:
    shown = images(4, [5, 5, 7, 7])
    assert [class_names(shown, None, None)(n) for n in (5, 7, 6)] == [
        "folder0", "folder1", "class 6",
    ]  # fmt: skip
    assert class_names(shown, ("a", "b"), None)(1) == "b"
    listed = tmp_path / "classes.txt"
    listed.write_text("".join(f"{name}\n" for name in ("a", "b", "c", "d", "e", "folder0", "g")))
    assert class_names(shown, None, listed)(6) == "g"
