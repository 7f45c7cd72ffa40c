"""Where images come from: folders, archives and arrays, with labels, links and fingerprints."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pictures import (
    CLASSES,
    LABELS,
    PIXELS,
    SPEC,
    png,
    together,
    write_folder,
    write_npz,
    write_tar,
)
from vitcompress.data.images import open_images
from vitcompress.data.preprocess import model_input
from vitcompress.example import glyphs


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


def compressed_npz(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "b.npz", x=PIXELS, y=np.array(LABELS, np.uint8))
    return tmp_path / "b.npz"


@pytest.mark.parametrize(
    "write",
    [
        lambda tmp_path: write_folder(tmp_path / "root"),
        class_folder_tar,
        wrapped_tar,
        numbered_tar,
        named_tar,
        lambda tmp_path: write_npz(tmp_path / "a.npz"),
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
    assert open_images(write_npz(tmp_path / "a.npz"), labelled=True).num_classes is None


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
