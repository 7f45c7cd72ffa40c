"""Images of any number of channels and of other types than 8 bits, in the files that hold them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from vitcompress.data.channels import fitted
from vitcompress.data.decoding import decode
from vitcompress.data.images import batches, check_channels, open_images
from vitcompress.data.preprocess import Preprocess, model_input
from vitcompress.errors import InputError

CHANNELS = (1, 2, 3, 4, 13)
KINDS: dict[type[np.generic], float] = {
    np.uint8: 255.0,
    np.uint16: 65535.0,
    np.int16: 32767.0,
    np.float32: 1.0,
    np.float64: 1.0,
}


def spec(channels: int, **facts: Any) -> Preprocess:
    given = {
        "input_size": (8, 8),
        "channels": channels,
        "mean": tuple(0.1 + 0.02 * n for n in range(channels)),
        "std": tuple(0.2 + 0.03 * n for n in range(channels)),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    }
    return Preprocess(**{**given, **facts})


def drawn(channels: int, kind: type[np.generic] = np.uint8, size: int = 14) -> np.ndarray:
    shape = (size, size + 3, channels)
    return (np.random.default_rng(channels).random(shape) * KINDS[kind]).astype(kind)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, bands=array)
    return file.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack", **options})
    return file.getvalue()


def wide_tiff(array: np.ndarray) -> bytes:
    """One page with all channels, as GDAL writes it."""
    channels = array.shape[2]
    return tiff(array, planarconfig="contig", extrasamples=[0] * (channels - 1), metadata=None)


def planes_tiff(array: np.ndarray) -> bytes:
    return tiff(array.transpose(2, 0, 1), planarconfig="separate", metadata=None)


def pages_tiff(array: np.ndarray) -> bytes:
    return tiff(array.transpose(2, 0, 1), metadata=None)


FILES: dict[str, Callable[[np.ndarray], bytes]] = {
    ".npy": npy,
    "first.npy": lambda array: npy(array.transpose(2, 0, 1)),
    ".npz": npz,
    ".tif": wide_tiff,
    "planes.tiff": planes_tiff,
    "pages.tif": pages_tiff,
    "deflated.tif": lambda array: tiff(array, compression="zlib"),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [2, 4, 13])
def test_every_file_gives_the_same_values(file: str, kind: type[np.generic], channels: int) -> None:
    array = drawn(channels, kind)
    found = fitted(decode(FILES[file](array)), channels, floats=False)
    expected = array.transpose(2, 0, 1) / np.array(KINDS[kind])
    assert np.asarray(found).dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "RGBX"])
def test_four_bytes_of_a_picture_are_four_channels(mode: str) -> None:
    array = drawn(4)
    unknown = tiff(array, photometric="rgb", extrasamples=[0 if mode == "RGBX" else 2])
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    for data in (unknown, *([file.getvalue()] if mode == "RGBA" else [])):
        found = fitted(decode(data), 4, floats=False)
        np.testing.assert_allclose(found, array.transpose(2, 0, 1) / 255, rtol=1e-6)


def test_sixteen_bits_of_three_channels_are_kept() -> None:
    array = drawn(3, np.uint16)
    found = fitted(decode(tiff(array, photometric="rgb")), 3, floats=False)
    np.testing.assert_allclose(found, array.transpose(2, 0, 1) / 65535, rtol=1e-6)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos", "box"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("floor_crop", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (8, 11)])
def test_channels_are_resized_and_cropped_as_pictures_are(
    interpolation: str, crop_mode: str, floor_crop: bool, size: tuple[int, int]
) -> None:
    facts = {
        "interpolation": interpolation,
        "crop_mode": crop_mode,
        "floor_crop": floor_crop,
        "input_size": size,
    }
    array = drawn(3, size=31)
    picture = model_input(Image.fromarray(array), spec(3, **facts))
    floats = model_input(np.float32(array) / 255, spec(3, **facts))
    assert floats.shape == (3, *size)
    # A picture is rounded to 8 bits, once a direction, and cut off at black and white.
    inside = picture.abs() * torch.tensor(spec(3).std)[:, None, None]
    step = 1.1 / 255 / min(spec(3).std)
    far = (picture - floats).abs() > step
    assert far.float().mean() < 0.15
    assert (inside[far] > 0.05).all()
    many = model_input(np.concatenate([np.float32(array) / 255] * 2, 2), spec(6, **facts))
    assert torch.equal(many[:3], floats)


def test_uint8_arrays_are_the_pictures_that_they_hold() -> None:
    array = drawn(3)
    expected = model_input(Image.fromarray(array), spec(3))
    for same in (array, array.transpose(2, 0, 1)):
        assert torch.equal(model_input(same, spec(3)), expected)
    grey = model_input(Image.fromarray(array).convert("L"), spec(1))
    assert torch.equal(model_input(array, spec(1)), grey)
    lightness = np.asarray(Image.fromarray(array).convert("L"))
    for same in (lightness, lightness[None], lightness[..., None]):
        assert torch.equal(model_input(same, spec(1)), grey)
    assert torch.equal(
        model_input(lightness, spec(3)), model_input(Image.fromarray(lightness), spec(3))
    )


@pytest.mark.parametrize(
    ("shape", "channels", "told"),
    [
        ((8, 9, 3), 13, "shape [8, 9, 3], and the model 13 channel(s): neither"),
        ((13, 8, 9), 3, "[13, 8, 9], and the model 3"),
        ((8, 9, 4), 3, "[8, 9, 4], and the model 3"),
        ((4, 9, 4), 4, "both its first and its last axis"),
        ((8, 9), 2, "[8, 9]"),
        ((2, 8, 9, 3), 3, "[2, 8, 9, 3]"),
        ((9,), 1, "[9]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    shape: tuple[int, ...], channels: int, told: str
) -> None:
    for kind in (np.uint8, np.float32):
        with pytest.raises(InputError) as caught:
            model_input(np.zeros(shape, kind), spec(channels))
        assert told in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "CMYK", "I;16"])
def test_pictures_that_do_not_fit_are_refused(mode: str) -> None:
    image = Image.new(mode, (8, 8))
    with pytest.raises(InputError, match=r"has [13] channel\(s\), and the model 4"):
        model_input(image, spec(4))


@pytest.mark.parametrize("kind", [np.int32, np.uint32, np.int64, np.int8, np.bool_, np.complex64])
def test_numbers_of_unknown_range_are_refused(kind: type[np.generic]) -> None:
    with pytest.raises(
        InputError, match=r"range is not known; give uint8, uint16, int16 or floats"
    ):
        model_input(np.zeros((8, 8, 2), kind), spec(2))


def test_an_image_with_nan_is_unreadable() -> None:
    array = drawn(2, np.float32)
    array[3, 4, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        model_input(array, spec(2))


def write(root: Path, name: str, content: bytes, classes: int = 3) -> Path:
    for place in range(classes):
        (root / f"c{place}").mkdir(parents=True, exist_ok=True)
        (root / f"c{place}" / name).write_bytes(content)
    return root


@pytest.mark.parametrize("name", FILES)
def test_folders_of_arrays(name: str, tmp_path: Path) -> None:
    root = write(tmp_path, f"a{name}", FILES[name](drawn(13, np.uint16)))
    images = open_images(root, labelled=True)
    (batch,) = batches(images, spec(13), 4)
    assert batch.pixels.shape == (3, 13, 8, 8)
    assert images.labels == [0, 1, 2]


def test_arrays_beside_pictures_are_no_images(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(drawn(3)).save(file, "PNG")
    root = write(write(tmp_path, "a.png", file.getvalue()), "a.npy", npy(drawn(3)))
    assert all(name.endswith(".png") for name in open_images(root, labelled=True).names)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_npz_of_many_images(channels: int, kind: type[np.generic], tmp_path: Path) -> None:
    array = np.stack([drawn(channels, kind), drawn(channels, kind)[::-1]])
    for place, same in enumerate((array, array.transpose(0, 3, 1, 2))):
        np.savez(tmp_path / f"{place}.npz", images=same, labels=[0, 1])
        (batch,) = batches(open_images(tmp_path / f"{place}.npz", labelled=True), spec(channels), 2)
        expected = [model_input(each, spec(channels)) for each in array]
        assert torch.equal(batch.pixels, torch.stack(expected))


def test_what_does_not_fit_is_told_with_its_file(tmp_path: Path) -> None:
    images = open_images(write(tmp_path, "a.npy", npy(drawn(13))), labelled=True)
    for read in (check_channels, lambda *given: list(batches(*given, 4))):
        with pytest.raises(InputError) as caught:
            read(images, spec(3))
        line = str(caught.value)
        assert line.startswith(f"{tmp_path}: c0/a.npy: has the shape [14, 17, 13]")
        assert "\n" not in line


def test_several_arrays_in_a_file_are_told_by_name(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.savez(file, image=drawn(2), mask=drawn(1))
    images = open_images(write(tmp_path, "a.npz", file.getvalue()), labelled=True)
    with pytest.raises(InputError, match=r"c0/a\.npz: holds 2 arrays \(image, mask\)"):
        check_channels(images, spec(2))


def test_a_compression_that_is_not_to_be_had_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", refuse)
    with pytest.raises(InputError, match=r"pip install 'vitcompress\[tiff\]'"):
        decode(wide_tiff(drawn(13)))


@pytest.mark.parametrize("cut", [10, 300, -20])
def test_damaged_files_are_unreadable(cut: int, tmp_path: Path) -> None:
    (tmp_path / "0.npy").write_bytes(npy(drawn(13)))
    for file in (npy, npz, wide_tiff, planes_tiff):
        (tmp_path / "1.npy").write_bytes(file(drawn(13))[:cut])
        images = open_images(tmp_path, labelled=False)
        (batch,) = batches(images, spec(13), 4)
        assert batch.names == ["0.npy"]
        assert list(images.skipped) == ["1.npy"]
