"""Bad input is told in one line that names the file or folder."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from helpers.pictures import PIXELS, SPEC, png, write_folder, write_npz, write_tar
from vitcompress.data.images import batches, open_images
from vitcompress.errors import InputError


def refused(source: object, *told: str, **options: object) -> None:
    with pytest.raises(InputError) as caught:
        open_images(source, **({"labelled": True} | options))  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(source), *told):
        assert part in message


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such file")


@pytest.mark.parametrize("labelled", [True, False])
def test_an_empty_folder_is_refused(labelled: bool, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("none")
    refused(tmp_path, "no images found", "class folders", labelled=labelled)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK")
    refused(tmp_path / "images.zip", "a .tar or a .npz")


def test_a_flat_folder_with_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(PIXELS[0]))
    refused(tmp_path, "a.png has no label", "one folder a class")


def test_a_stray_image_beside_class_folders_is_refused(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "stray.png").write_bytes(png(PIXELS[0]))
    refused(tmp_path, "stray.png has no label")


def test_a_class_missing_from_the_classes_file_is_refused(tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("ant\nbee\n")
    refused(write_folder(tmp_path / "r"), "class cat", str(classes), classes=classes)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"# nothing\n\n", "names no class"),
        (b"ant\nbee\ncat\nbee\n", "bee is named 2 times"),
        (b"\xff\xfe\xfa", "not text in UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_useless_classes_file_is_refused(
    content: bytes | None, told: str, tmp_path: Path
) -> None:
    classes = tmp_path / "classes.txt"
    if content is not None:
        classes.write_bytes(content)
    with pytest.raises(InputError, match=told) as caught:
        open_images(write_folder(tmp_path / "r"), classes=classes, labelled=True)
    assert str(classes) in str(caught.value)


def test_a_label_beyond_the_classes_file_is_refused(tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("ant\nbee\n")
    refused(write_npz(tmp_path / "a.npz"), "label 2", str(classes), classes=classes)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"pixels": PIXELS}, "only pixels"),
        ({"images": PIXELS[0, 0]}, "[12, 3]"),
        ({"images": PIXELS[None]}, "[1, 6, 10, 12, 3]"),
        ({"images": PIXELS[:0]}, "no images"),
        ({"images": np.array([None, {}], dtype=object)}, "Object arrays"),
        ({"images": PIXELS}, "no label"),
        ({"images": PIXELS, "labels": np.zeros(5, np.int64)}, "labels are int64 [5]"),
        ({"images": PIXELS, "labels": np.zeros(6)}, "labels are float64"),
        ({"images": PIXELS, "labels": np.full(6, -1)}, "integers from 0"),
    ],
)
def test_a_npz_of_another_layout_is_refused(
    arrays: dict[str, np.ndarray], told: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    refused(tmp_path / "a.npz", told)


def test_a_damaged_npz_is_refused(tmp_path: Path) -> None:
    whole = write_npz(tmp_path / "a.npz").read_bytes()
    lone = io.BytesIO()
    np.save(lone, PIXELS)
    for content in (b"", b"no zip at all", whole[: len(whole) // 2], lone.getvalue()):
        (tmp_path / "a.npz").write_bytes(content)
        refused(tmp_path / "a.npz", "numpy.savez")


def test_a_tar_without_images_is_refused(tmp_path: Path) -> None:
    refused(write_tar(tmp_path / "a.tar", {"a.txt": b"x"}), "no images found")


def test_a_tar_without_labels_is_refused(tmp_path: Path) -> None:
    members = {"1.png": png(PIXELS[0]), "2.png": png(PIXELS[0]), "1.cls": b"0"}
    refused(write_tar(tmp_path / "a.tar", members), "2.png has no label")


def test_a_damaged_or_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.add(write_folder(tmp_path / "r"), "r")
    refused(tmp_path / "z.tar", "uncompressed tar")
    (tmp_path / "z.tar").write_bytes(b"not a tar" * 100)
    refused(tmp_path / "z.tar", "uncompressed tar")


@pytest.mark.parametrize("source", ["example:glyphs", "example:glyphs/test", "example:digits/x"])
def test_an_unknown_example_is_refused(source: str) -> None:
    refused(source, "example:glyphs/calibration")


def test_a_limit_or_batch_size_of_nothing_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    with pytest.raises(InputError, match="limit of 0"):
        open_images(root, labelled=True, limit=0)
    with pytest.raises(InputError, match="batch size of 0"):
        next(batches(open_images(root, labelled=True), SPEC, 0))
