"""Streaming histograms, and the quantiles read from them."""

import pytest
import torch
from torch import Tensor

from vitcompress.methods.histogram import Histogram, quantiles

SHARES = torch.tensor([0.001, 0.01, 0.25, 0.5, 0.9, 0.999])


def values(rows: int = 4000) -> Tensor:
    """Four channels: narrow, wide, one-sided, and one that grows as it goes on."""
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 1e-4
    x[:, 1] *= 300
    x[:, 2] = x[:, 2].abs() + 5
    x[:, 3] *= torch.linspace(0.01, 50, rows)
    return x


def filled(x: Tensor, rows: int) -> Histogram:
    histogram = Histogram.empty(x.shape[1])
    for part in x.split(rows):
        histogram.update(part)
    return histogram


def channel_quantiles(histogram: Histogram) -> Tensor:
    rows = zip(histogram.centres(), histogram.counts, strict=True)
    return torch.stack([quantiles(centres, counts, SHARES) for centres, counts in rows])


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_streaming_gives_the_quantiles_of_one_pass(rows: int) -> None:
    x = values()
    streamed, at_once = filled(x, rows), filled(x, len(x))
    assert torch.equal(streamed.limit, at_once.limit)
    assert torch.equal(streamed.counts.sum(1), at_once.counts.sum(1))
    bin_width = 2 * at_once.limit / at_once.counts.shape[1]
    apart = (channel_quantiles(streamed) - channel_quantiles(at_once)).abs()
    assert (apart <= bin_width[:, None] * 1.01).all()


def test_quantiles_are_those_of_the_values() -> None:
    x = values()
    histogram = filled(x, 500)
    exact = torch.quantile(x, SHARES, dim=0).T
    bin_width = 2 * histogram.limit / histogram.counts.shape[1]
    inner = slice(1, -1)  # where values lie dense
    apart = (channel_quantiles(histogram) - exact).abs()[:, inner]
    assert (apart <= 1.5 * bin_width[:, None]).all()


def test_a_larger_limit_loses_no_counts() -> None:
    histogram = Histogram.empty(2)
    small = torch.tensor([[2.0**-10, 0.5], [-(2.0**-10), -0.5], [0.0, 0.0]])
    histogram.update(small)
    histogram.update(torch.tensor([[1e6, 0.25]]))
    assert histogram.counts.sum(1).tolist() == [4, 4]
    assert histogram.limit[0] >= 1e6
    assert histogram.limit[1] == 0.5


def test_doubling_keeps_the_place_of_values() -> None:
    x = torch.linspace(-0.9, 0.9, 37)[:, None]
    histogram = filled(x, 37)
    histogram.update(torch.tensor([[7.5]]))
    held = histogram.counts[0] > 0
    centres, counts = histogram.centres()[0, held], histogram.counts[0, held].long()
    restored = centres.repeat_interleave(counts)
    half_bin = histogram.limit[0] / histogram.counts.shape[1]
    expected = torch.cat([x[:, 0], torch.tensor([7.5])])
    assert (restored - expected).abs().max() <= half_bin * 1.001


def test_both_ends_of_the_range_are_inside() -> None:
    histogram = filled(torch.tensor([[1.0], [-1.0]]), 2)
    assert histogram.counts.shape == (1, 512)
    assert histogram.counts[0, 0] == 1
    assert histogram.counts[0, -1] == 1


def test_the_centres_of_bins_lie_evenly() -> None:
    centres = Histogram(torch.tensor([2.0]), torch.zeros(1, 512)).centres()[0]
    assert centres[0].item() == pytest.approx(-2 + 2 / 512)
    assert centres.diff().allclose(torch.tensor(4 / 512))
    assert centres.sum().abs() < 1e-4


def test_quantiles_of_plain_values_are_those_of_torch() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(3))
    shares = torch.linspace(0.01, 0.99, 21)
    found = quantiles(x, torch.ones_like(x), shares)
    assert torch.allclose(found, torch.quantile(x, shares), atol=2e-3)


def test_counts_weigh_values() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 100.0])
    found = quantiles(x, torch.tensor([1.0, 8.0, 1.0, 0.0]), torch.tensor([0.05, 0.5, 0.95]))
    assert torch.allclose(found, torch.tensor([1.0, 2.0, 3.0]), atol=1e-3)


def test_a_single_value_is_every_quantile() -> None:
    found = quantiles(torch.full((5,), 0.3), torch.ones(5), torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(found, torch.full((3,), 0.3))
