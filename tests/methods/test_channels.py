"""Scales and shifts of channels, against least squares as a library solves them."""

import pytest
import torch
from torch import Tensor

from vitcompress.methods.channels import ChannelMoments, fitted

TOKENS, CHANNELS = 11, 5


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is given and wanted [7, tokens, channels], weights of tokens, and the root of a metric
    of channels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (7, TOKENS, CHANNELS)
    given = torch.randn(shape, generator=generator) + torch.arange(CHANNELS)
    wanted = 0.8 * given + 0.3 * torch.randn(shape, generator=generator) - 0.2
    weights = torch.rand(TOKENS, generator=generator) + 0.1
    return given, wanted, weights, torch.randn(CHANNELS, CHANNELS, generator=generator)


@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("shifts", [True, False])
def test_the_fit_is_that_of_least_squares(damping: float, shifts: bool) -> None:
    given, wanted, weights, root = (each.double() for each in drawn(0))
    moments, metric = ChannelMoments.of(given, wanted, weights), root.T @ root
    found = fitted(moments, metric, damping, shifts)
    each = weights.sqrt().repeat(len(given))[:, None, None]
    z, t = given.flatten(0, 1), wanted.flatten(0, 1)
    # Of every token one equation for each row of the root; unknown are all scales, all shifts.
    rows = torch.cat([root * z[:, None, :], root.expand(len(z), -1, -1)], 2) * each
    values = (t @ root.T)[:, :, None] * each
    rows, values = rows.flatten(0, 1), values.flatten(0, 1)
    penalty = torch.diag((damping * rows.square().sum(0)).sqrt())  # scales to 1, shifts to 0
    towards = penalty @ torch.cat([torch.ones(CHANNELS), torch.zeros(CHANNELS)])[:, None].double()
    rows, values = torch.cat([rows, penalty]), torch.cat([values, towards])
    least = torch.linalg.lstsq(rows if shifts else rows[:, :CHANNELS], values).solution[:, 0]
    assert torch.allclose(found.scale, least[:CHANNELS])
    expected = least[CHANNELS:] if shifts else torch.zeros(CHANNELS).double()
    assert torch.allclose(found.shift, expected)


def test_moments_of_batches_add_up() -> None:
    given, wanted, weights, _ = drawn(1)
    whole = ChannelMoments.of(given, wanted, weights)
    parts = [ChannelMoments.of(given[p], wanted[p], weights) for p in (slice(3), slice(3, None))]
    for one, other in zip(whole, parts[0].plus(parts[1]), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_channels_without_a_trace_of_their_target_stay_within_bounds() -> None:
    given, _, weights, _ = drawn(2)
    metric = torch.eye(CHANNELS)
    assert (fitted(ChannelMoments.of(given, -given, weights), metric, 0.0).scale == 0.5).all()
    still = torch.zeros_like(given)
    found = fitted(ChannelMoments.of(still, still + 3, weights), metric, 0.0)
    assert (found.scale == 1).all()
    assert torch.allclose(found.shift, torch.full((CHANNELS,), 3.0).double())


def test_what_nothing_counts_for_stays() -> None:
    given, wanted, weights, _ = drawn(3)
    moments = ChannelMoments.of(given, wanted, weights)
    found = fitted(moments, torch.zeros(CHANNELS, CHANNELS), 0.0)
    assert (found.scale == 1).all()
    assert (found.shift == 0).all()
