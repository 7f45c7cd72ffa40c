"""Sources, labels, samples, fingerprints and batches, on tiny images."""

import io
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitcompress.data import images as module
from vitcompress.data.images import Batch, ImageSet, batches, open_images
from vitcompress.data.preprocess import Preprocess, model_input
from vitcompress.errors import InputError
from vitcompress.example import glyphs

SPEC = Preprocess(
    input_size=(8, 8),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    crop_pct=1.0,
    interpolation="bilinear",
)
LABELS = [0, 0, 1, 1, 1, 2]
CLASSES = ["ant", "bee", "cat"]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_folder(root: Path) -> Path:
    for i, label in enumerate(LABELS):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(PIXELS[i]))
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def class_folder_tar(tmp_path: Path) -> Path:
    names = [f"{CLASSES[label]}/{i}.png" for i, label in enumerate(LABELS)]
    return write_tar(tmp_path / "f.tar", {n: png(PIXELS[i]) for i, n in enumerate(names)})


def wrapped_tar(tmp_path: Path) -> Path:
    names = [f"./top/set/{CLASSES[label]}/{i}.png" for i, label in enumerate(LABELS)]
    return write_tar(tmp_path / "t.tar", {n: png(PIXELS[i]) for i, n in enumerate(names)})


def numbered_tar(tmp_path: Path) -> Path:
    members: dict[str, bytes] = {}
    for i, label in enumerate(LABELS):
        members |= {f"{i}.cls": f"{label}\n".encode(), f"{i}.png": png(PIXELS[i])}
    return write_tar(tmp_path / "w.tar", members | {"0.json": b"{}"})


def named_tar(tmp_path: Path) -> Path:
    members: dict[str, bytes] = {}
    for i, label in enumerate(LABELS):
        members |= {f"{i}.PNG": png(PIXELS[i]), f"{i}.cls": CLASSES[label].encode()}
    return write_tar(tmp_path / "n.tar", members)


def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array(LABELS))
    return tmp_path / "a.npz"


def compressed_npz(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "b.npz", x=PIXELS, y=np.array(LABELS, np.uint8))
    return tmp_path / "b.npz"


def together(images: ImageSet, batch_size: int = 4) -> Batch:
    parts = list(batches(images, SPEC, batch_size))
    labels = [part.labels for part in parts if part.labels is not None]
    return Batch(
        torch.cat([part.pixels for part in parts]),
        torch.cat(labels) if labels else None,
        [name for part in parts for name in part.names],
    )


# Sources and labels


@pytest.mark.parametrize(
    "write",
    [
        lambda tmp_path: write_folder(tmp_path / "root"),
        class_folder_tar,
        wrapped_tar,
        numbered_tar,
        named_tar,
        npz,
        compressed_npz,
    ],
)
def test_every_source_gives_the_same_images_and_labels(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    got = together(open_images(write(tmp_path), labelled=True))
    assert torch.equal(
        got.pixels, torch.stack([model_input(Image.fromarray(p), SPEC) for p in PIXELS])
    )
    assert got.labels is not None
    assert got.labels.dtype == torch.int64
    assert got.labels.tolist() == LABELS


def test_grey_arrays_are_read_as_grey(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", x=PIXELS[..., 0])
    images = open_images(tmp_path / "g.npz", labelled=False)
    assert np.array_equal(np.asarray(images.read(3)), PIXELS[3, ..., 0])


def test_class_folders_count_when_empty_and_reach_any_depth(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "aardvark").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "bee" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "bee" / "deep" / "er" / "q.JPG").write_bytes(png(PIXELS[0]))
    images = open_images(tmp_path, labelled=True)
    assert images.num_classes == 4
    assert images.labels is not None
    assert dict(zip(images.names, images.labels, strict=True))["bee/deep/er/q.JPG"] == 2


def test_what_is_hidden_or_no_image_is_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path / "root")
    for name in ("._0.png", ".hidden.jpg", "notes.txt", "Thumbs.db"):
        (tmp_path / "root" / "ant" / name).write_bytes(b"no image")
    (tmp_path / "root" / ".git").mkdir()
    (tmp_path / "root" / ".git" / "a.png").write_bytes(b"no image")
    assert len(open_images(tmp_path / "root", labelled=True)) == len(LABELS)
    members = {"ant/1.png": png(PIXELS[0]), "ant/._1.png": b"x", "__MACOSX/._2.png": b"x"}
    assert open_images(write_tar(tmp_path / "m.tar", members), labelled=True).names == ["ant/1.png"]


def test_a_flat_folder_is_fine_without_labels(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(png(PIXELS[0]))
    (tmp_path / "a.png").write_bytes(png(PIXELS[1]))
    images = open_images(str(tmp_path), labelled=False)
    assert images.names == ["a.png", "b.png"]
    assert images.labels is None
    assert images.num_classes is None
    assert together(images).labels is None


def test_the_classes_file_decides_labels(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root")
    classes = tmp_path / "classes.txt"
    classes.write_text("# ours\ncat\tfelis\textra\n\ndog\nbee\r\nant\n")
    images = open_images(root, classes=classes, labelled=True)
    assert images.labels == [3, 3, 2, 2, 2, 0]
    assert images.num_classes == 4


def test_num_classes_is_of_the_source_not_of_the_sample(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    images = open_images(root, labelled=True, limit=1, seed=0)
    assert len(images) == 1
    assert images.num_classes == 3


def test_stored_numbers_do_not_tell_how_many_classes(tmp_path: Path) -> None:
    assert open_images(npz(tmp_path), labelled=True).num_classes is None


@pytest.mark.parametrize(("split", "count"), [("calibration", 512), ("evaluation", 1000)])
def test_the_example_is_drawn(split: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(asked: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        assert (asked, number) == (split, count)
        return drawn, np.arange(count, dtype=np.int64) % len(glyphs.CLASSES)

    drawn = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    monkeypatch.setattr(glyphs, "draw", draw)
    images = open_images(f"example:glyphs/{split}", labelled=True, limit=10)
    assert len(images) == 10
    assert images.num_classes == len(glyphs.CLASSES)
    assert images.labels == [int(name) % len(glyphs.CLASSES) for name in images.names]
    assert np.array_equal(np.asarray(images.read(4)), drawn[int(images.names[4])])


# Samples


def test_a_sample_keeps_names_labels_and_contents_together(tmp_path: Path) -> None:
    images = open_images(write_folder(tmp_path), labelled=True, limit=4, seed=3)
    assert images.labels is not None
    assert set(images.labels) == {0, 1, 2}
    for i, (name, label) in enumerate(zip(images.names, images.labels, strict=True)):
        folder, _, number = name.removesuffix(".png").partition("/")
        assert CLASSES[label] == folder
        assert np.array_equal(np.asarray(images.read(i)), PIXELS[int(number)])


# Fingerprints


def test_a_fingerprint_is_of_names_labels_and_contents_only(tmp_path: Path) -> None:
    here = open_images(write_folder(tmp_path / "here"), labelled=True)
    there = open_images(write_folder(tmp_path / "far" / "there"), labelled=True)
    assert here.fingerprint() == there.fingerprint()

    classes = tmp_path / "classes.txt"
    classes.write_text("bee\nant\ncat\n")
    relabelled = open_images(tmp_path / "here", classes=classes, labelled=True)
    unlabelled = open_images(tmp_path / "here", labelled=False)
    fewer = open_images(tmp_path / "here", labelled=True, limit=5)
    changed = tmp_path / "far" / "there" / "ant" / "0.png"
    changed.write_bytes(changed.read_bytes() + b"\0")
    renamed = write_folder(tmp_path / "renamed")
    (renamed / "cat" / "5.png").rename(renamed / "cat" / "6.png")
    others = [relabelled, unlabelled, fewer, there, open_images(renamed, labelled=True)]
    prints = {images.fingerprint() for images in [here, *others]}
    assert len(prints) == 1 + len(others)


# Batches


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


# Folders with links, and strange names


def linked_to_its_parent(root: Path) -> None:
    (root / "ant" / "up").symlink_to("..")
    (root / "up").symlink_to(".")


def linked_to_each_other(root: Path) -> None:
    (root / "ant" / "there").symlink_to("../bee")
    (root / "bee" / "there").symlink_to("../ant")


def linked_to_what_it_lies_in(root: Path) -> None:
    write_folder(root.parent / "others")
    (root / "up").symlink_to("..")


def linked_files(root: Path) -> None:
    (root / "ant" / "again.png").symlink_to("../cat/5.png")
    (root / "ant" / "0 again.png").hardlink_to(root / "ant" / "0.png")
    (root / "another").symlink_to("cat")


def links_that_are_no_images(root: Path) -> None:
    os.mkfifo(root / "ant" / "waits.png")


@pytest.mark.parametrize(
    "change",
    [
        linked_to_its_parent,
        linked_to_each_other,
        linked_to_what_it_lies_in,
        linked_files,
        links_that_are_no_images,
    ],
)
def test_each_image_is_listed_once(change: Callable[[Path], None], tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root")
    before = open_images(root, labelled=True)
    change(root)
    after = open_images(root, labelled=True)
    assert [after.fetch(i) for i in range(len(after))] == [png(pixels) for pixels in PIXELS]
    assert (after.labels, after.num_classes) == (before.labels, before.num_classes)


def test_what_links_lead_to_is_listed(tmp_path: Path) -> None:
    far = write_folder(tmp_path / "far")
    (tmp_path / "root").mkdir()
    for name in CLASSES:
        (tmp_path / "root" / name).symlink_to(far / name)
    images, there = (open_images(root, labelled=True) for root in (tmp_path / "root", far))
    assert images.fingerprint() == there.fingerprint()
    (tmp_path / "root" / "cat" / "lost.png").symlink_to("nothing")
    got = together(open_images(tmp_path / "root", labelled=True))
    assert got.names == there.names  # told and left out, as an image that cannot be read


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
