"""Candidate reparametrisations: what they do to ranges."""

import pytest
import torch

from vitcompress.methods.reparametrisation import (
    Reparametrisation,
    identity,
    levelled,
    reparametrisations,
)

LOW = torch.tensor([-1.0, -10.0, 2.0, -0.1, 0.0])
HIGH = torch.tensor([1.0, 30.0, 3.0, 0.1, 0.0])


def ranges(change: Reparametrisation) -> tuple[torch.Tensor, torch.Tensor]:
    return change.apply(LOW), change.apply(HIGH)


def test_the_identity_changes_nothing() -> None:
    assert all(map(torch.equal, ranges(identity(5)), (LOW, HIGH)))
    assert identity(5).strength == 0


def test_every_reparametrisation_is_finite_and_positive() -> None:
    changes = list(reparametrisations(LOW, HIGH))
    assert len({(f.strength, f.clip) for f in changes}) == len(changes) > 1
    for change in changes:
        assert change.shift.isfinite().all()
        assert change.scale.isfinite().all()
        assert (change.scale > 0).all()


@pytest.mark.parametrize("clip", [0.0, 0.02])
def test_a_stronger_reparametrisation_brings_ranges_nearer_to_each_other(clip: float) -> None:
    def spread(change: Reparametrisation) -> float:
        low, high = (end[:4] for end in ranges(change))
        return float((high - low).log().std())

    spreads = [
        spread(f)
        for f in sorted(reparametrisations(LOW, HIGH), key=lambda change: change.strength)
        if f.clip == clip
    ]
    assert [spread(identity(5)), *spreads] == sorted([spread(identity(5)), *spreads], reverse=True)


def test_a_reparametrisation_moves_the_middle_by_its_strength() -> None:
    for change in reparametrisations(LOW, HIGH):
        low, high = ranges(change)
        left = (low + high) / 2 * change.scale
        assert torch.allclose(left, (1 - change.strength) * (LOW + HIGH) / 2, atol=1e-5)


def test_a_reparametrisation_brings_all_ranges_to_one_by_its_strength() -> None:
    for change in (f for f in reparametrisations(LOW, HIGH) if f.clip == 0):
        low, high = (end[:4] for end in ranges(change))  # the last channel has no range
        half, before = (high - low) / 2, (HIGH - LOW)[:4] / 2
        # What is left of the differences is their power 1 − strength: none at full strength.
        left = half / before ** (1 - change.strength)
        assert torch.allclose(left, left.mean().expand(4), rtol=1e-5)


def test_clipping_limits_the_scale_of_outlier_channels() -> None:
    half = torch.ones(100)
    half[0] = 1000
    plain, clipped = (
        next(f for f in reparametrisations(-half, half) if f.strength == 0.5 and f.clip == clip)
        for clip in (0.0, 0.02)
    )
    assert plain.scale[0] / plain.scale[1] == pytest.approx(1000**0.5)
    assert clipped.scale[0] / clipped.scale[1] < 10


def test_channels_that_are_always_zero_can_be_folded() -> None:
    for change in reparametrisations(torch.zeros(3), torch.zeros(3)):
        assert change.scale.isfinite().all()
        assert (change.scale > 0).all()


def test_strengths_can_be_asked_for() -> None:
    assert {change.strength for change in reparametrisations(LOW, HIGH, (0.25, 1.0))} == {0.25, 1.0}
    whole = next(change for change in reparametrisations(LOW, HIGH, (1.0,)))
    low, high = (end[:4] for end in ranges(whole))
    assert torch.allclose(low, -high, atol=1e-5)  # at full strength all ranges are one
    assert torch.allclose(high, high.mean().expand(4), rtol=1e-5)


def test_levels_of_pixels_become_codes_however_they_were_normalised() -> None:
    levels = torch.arange(256.0)
    values = torch.stack([(levels / 255 - mean) / std for mean, std in ((0.4, 0.2), (0.5, 0.3))])
    values = values.repeat_interleave(2, 0)  # two pixels of each channel
    found = levelled(values.amin(1), values.amax(1), 2)
    assert torch.equal(found.shift[::2], found.shift[1::2])
    codes = found.apply(values.T)
    codes = codes * 127 / codes.max()
    assert (codes - (levels[:, None] - 128)).abs().max() < 1e-3
    constant = levelled(torch.zeros(4), torch.zeros(4), 2)
    assert constant.apply(torch.zeros(4)).isfinite().all()
