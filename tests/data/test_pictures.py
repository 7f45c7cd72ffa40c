"""Pictures that a report can hold: colours mean what they should."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from vitcompress.data.pictures import JPEG_PREFIX, PNG_PREFIX, heat_map, photograph, token_map


def decoded(uri: str) -> np.ndarray:
    assert uri.startswith(PNG_PREFIX)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(PNG_PREFIX)))))


def heats(values: torch.Tensor, channels: int = 3) -> np.ndarray:
    """Those of a picture that is 0.8 all over: the colours where the values are."""
    pixels = torch.full((channels, 8, 8), 0.8)
    drawn = heat_map(pixels, values, (0.0,) * channels, (1.0,) * channels, 32 * len(values))
    assert drawn.startswith(JPEG_PREFIX)
    image = Image.open(io.BytesIO(base64.b64decode(drawn.removeprefix(JPEG_PREFIX))))
    return np.asarray(image)[16::32, 16::32].astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_heat_map_is_blue_and_red_over_the_picture_in_grey(channels: int) -> None:
    found = heats(torch.tensor([[-2.0, 0.0], [1.0, 2.0]]), channels)
    assert found.shape == (2, 2, 3)
    assert found[0, 0, 2] > found[0, 0, 0] + 100
    assert np.abs(found[0, 1] - 204).max() <= 8
    assert found[1, 1, 0] > found[1, 1, 2] + 100
    assert np.abs(2 * found[1, 0] - found[1, 1] - 204).max() <= 24  # half as deep


def test_without_relevance_the_picture_is_left() -> None:
    assert np.abs(heats(torch.zeros(4, 4)) - 204).max() <= 2


def test_a_photograph_is_as_before_preparation() -> None:
    original = torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    prepared = (original - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    found = decoded(photograph(prepared, mean, std, 8))
    assert np.abs(found / 255 - original.permute(1, 2, 0).numpy()).max() < 0.003


def test_a_token_has_the_mean_colour_of_its_patches_and_edges_around() -> None:
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[5, 5], [5, 2]])
    found = decoded(token_map(pixels, tokens, (0.0,) * 3, (1.0,) * 3, 8)) / 255
    image = pixels.permute(1, 2, 0).numpy()
    assert np.allclose(found[5:, 5:], image[4:, 4:].mean((0, 1)), atol=0.01)
    rest = (image.sum((0, 1)) - image[4:, 4:].sum((0, 1))) / 48
    assert np.allclose(found[:4], rest, atol=0.01)
    assert np.allclose(found[4:, :4], rest, atol=0.01)
    assert (found[4, 4:] < 0.5 * found[5, 5]).all()  # the edge
    assert (found[4:, 4] < 0.5 * found[5, 5]).all()


def test_one_channel_is_grey() -> None:
    assert decoded(photograph(torch.zeros(1, 8, 8), (0.5,), (0.5,), 4)).shape == (4, 4)


@pytest.mark.parametrize(("channels", "shape"), [(2, (8, 8)), (4, (8, 8, 3)), (13, (8, 8))])
def test_other_channels_are_shown_from_dark_to_bright(
    channels: int, shape: tuple[int, ...]
) -> None:
    # Values of a sensor, which are far from all of its range.
    values = 0.1 + 0.01 * torch.rand(channels, 8, 8, generator=torch.Generator().manual_seed(0))
    found = decoded(photograph(values, (0.0,) * channels, (1.0,) * channels, 8))
    assert found.shape == shape
    assert (found.min(), found.max()) == (0, 255)
    tokens = torch.tensor([[0, 1], [1, 2]])
    drawn = decoded(token_map(values, tokens, (0.0,) * channels, (1.0,) * channels, 8))
    assert drawn.shape == shape
