"""Batches in order and a bounded number ahead, and images that cannot be read."""

import os
import threading
from pathlib import Path

import pytest

from helpers.pictures import (
    PIXELS,
    SPEC,
    png,
    together,
    write_folder,
)
from vitcompress.data import images as module
from vitcompress.data.images import ImageSet, batches, open_images
from vitcompress.errors import InputError


def test_batches_keep_the_order_and_the_last_may_be_smaller(tmp_path: Path) -> None:
    images = open_images(write_folder(tmp_path), labelled=True)
    got = list(batches(images, SPEC, 4))
    assert [len(batch.names) for batch in got] == [4, 2]
    assert [batch.pixels.shape for batch in got] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    assert [name for batch in got for name in batch.names] == images.names


def test_decoding_stays_a_bounded_number_ahead() -> None:
    content, fetched, threads = png(PIXELS[0]), [], set()

    def fetch(index: int) -> bytes:
        fetched.append(index)
        threads.add(threading.current_thread().name)
        return content

    count = 10 * module._AHEAD
    images = ImageSet("made up", [str(i) for i in range(count)], None, None, fetch)
    stream = batches(images, SPEC, 1)
    for taken in range(1, 6):
        next(stream)
        assert len(fetched) <= taken + module._AHEAD
    assert threading.current_thread().name not in threads
    del stream  # as a consumer does that stops early
    assert len(fetched) <= 5 + module._AHEAD
    assert not [t for t in threading.enumerate() if t.name in threads]


def damaged(tmp_path: Path, count: int, of: int) -> ImageSet:
    content = png(PIXELS[0])
    for i in range(of):
        cut = [b"", b"not an image", content[: len(content) // 2]][i % 3]
        (tmp_path / f"{i:03d}.png").write_bytes(cut if i < count else content)
    return open_images(tmp_path, labelled=False)


def test_an_unreadable_image_is_named_once_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = damaged(tmp_path, 3, of=9)
    for _ in range(2):
        got = [b.names for b in batches(images, SPEC, 4, max_unreadable=0.34)]
        assert got == [["003.png", "004.png", "005.png", "006.png"], ["007.png", "008.png"]]
    assert list(images.skipped) == ["000.png", "001.png", "002.png"]
    assert "not an image" in images.skipped["001.png"]
    assert "truncated" in images.skipped["002.png"]
    told = capsys.readouterr().err
    assert [told.count(name) for name in ("000.png", "001.png", "002.png")] == [1, 1, 1]


def test_labels_stay_with_their_images_when_one_is_skipped(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "bee" / "2.png").write_bytes(b"not an image")
    got = together(open_images(tmp_path, labelled=True))
    assert got.labels is not None
    assert got.labels.tolist() == [0, 0, 1, 1, 2]


def test_too_many_unreadable_images_end_the_run(tmp_path: Path) -> None:
    assert len(list(batches(damaged(tmp_path, 1, of=20), SPEC, 32))) == 1
    with pytest.raises(InputError, match=r"2 of 20 .*allowed: 1.*000\.png, 001\.png") as caught:
        list(batches(damaged(tmp_path, 2, of=20), SPEC, 32))
    assert str(tmp_path) in str(caught.value)


def test_a_set_without_any_readable_image_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 of 1"):
        list(batches(damaged(tmp_path, 1, of=1), SPEC, 32))


def test_what_is_skipped_of_a_part_is_skipped_of_the_whole(tmp_path: Path) -> None:
    images = damaged(tmp_path, 0, of=6)
    for name in ("000.png", "004.png"):
        (tmp_path / name).write_bytes(b"not an image")
    first, last = images.subset(range(3)), images.subset(range(3, 6))
    for part in (first, last):  # one each, as many as are allowed
        assert len(next(batches(part, SPEC, 4)).names) == 2
    assert list(images.skipped) == ["000.png", "004.png"]


def test_a_file_that_vanished_is_unreadable(tmp_path: Path) -> None:
    images = damaged(tmp_path, 0, of=3)
    (tmp_path / "001.png").unlink()
    assert [b.names for b in batches(images, SPEC, 8)] == [["000.png", "002.png"]]
    assert images.fingerprint() != damaged(tmp_path, 0, of=3).fingerprint()


def test_a_name_like_markup_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = damaged(tmp_path, 0, of=2)
    (tmp_path / "[red]x.png").write_bytes(b"")
    images = open_images(tmp_path, labelled=False)
    list(batches(images, SPEC, 8))
    assert "[red]x.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"caf\xe9.png", r"caf\udce9.png"), (b"a\x1b[2J\nb.png", r"a\x1b[2J\nb.png")],
)
def test_strange_file_names_are_told_in_plain_text(
    name: bytes, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = damaged(tmp_path, 0, of=2)
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    strange.write_bytes(b"no image")
    images = open_images(tmp_path, labelled=False)
    assert len(next(batches(images, SPEC, 8)).names) == 2
    assert list(images.skipped) == [shown]
    assert shown in capsys.readouterr().err
    assert len(images.fingerprint()) == 64
    strange.write_bytes(png(PIXELS[0]))
    assert len(next(batches(images, SPEC, 8)).names) == 3
